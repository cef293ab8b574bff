"""Tests of `agents.distillation.training`."""

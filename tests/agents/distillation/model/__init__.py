"""Tests of `agents.distillation.model`."""

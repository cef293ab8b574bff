"""Tests of `agents.distillation.examination`."""

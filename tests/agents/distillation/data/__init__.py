"""Tests of `agents.distillation.data`."""

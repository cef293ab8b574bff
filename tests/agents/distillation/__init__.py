"""Tests of `agents.distillation`."""

"""Tests of `controllers.evaluation.checks`."""

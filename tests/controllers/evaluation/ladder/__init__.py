"""Tests of `controllers.evaluation.ladder`."""

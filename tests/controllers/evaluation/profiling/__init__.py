"""Tests of `controllers.evaluation.profiling`."""

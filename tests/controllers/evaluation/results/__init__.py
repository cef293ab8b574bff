"""Tests of `controllers.evaluation.results`."""

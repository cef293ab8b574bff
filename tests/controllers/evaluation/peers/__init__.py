"""Tests of `controllers.evaluation.peers`."""

"""Tests of `controllers.evaluation.live`."""

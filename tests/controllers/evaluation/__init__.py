"""Tests of `controllers.evaluation`."""

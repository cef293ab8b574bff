"""Tests of `controllers.inside_generate`."""

"""Tests of `controllers.rules`."""

"""Tests of `agents.study`."""

"""Tests of `agents.policies`."""

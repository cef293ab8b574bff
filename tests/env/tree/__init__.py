"""Tests of `env.tree`."""

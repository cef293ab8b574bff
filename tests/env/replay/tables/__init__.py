"""Tests of `env.replay`."""

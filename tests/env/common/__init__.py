"""Tests of `env.common`."""

"""Tests of `env.models`."""

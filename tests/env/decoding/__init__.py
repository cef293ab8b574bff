"""Tests of `env.decoding`."""

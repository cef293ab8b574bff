"""Tests of `env.latency`."""

"""Tests of `env.gym`."""

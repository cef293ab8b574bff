"""Tests of `env.kernels`."""

"""Promises of `env`."""

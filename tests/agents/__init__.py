"""Promises of `agents`."""

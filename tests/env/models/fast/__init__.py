"""Tests of the fast forwards."""

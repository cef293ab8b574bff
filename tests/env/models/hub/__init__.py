"""Tests of how models are found and loaded."""

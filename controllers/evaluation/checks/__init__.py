"""Checks that outputs, replay and predicted times are right."""

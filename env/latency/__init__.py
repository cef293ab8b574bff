"""Costs of rounds: measured on a machine, fitted, predicted."""

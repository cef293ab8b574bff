"""What rounds cost: measured on a machine, fitted, predicted."""

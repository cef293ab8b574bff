"""Recording traces from a pair of real models."""

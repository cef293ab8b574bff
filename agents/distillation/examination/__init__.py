"""How good a trained draft is, and its export."""

"""Decision rules: what tree to draft, chosen anew every round."""

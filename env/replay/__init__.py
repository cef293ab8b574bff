"""Exact replay of recorded texts, one at a time or many together."""

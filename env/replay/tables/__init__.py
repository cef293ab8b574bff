"""Outcomes of every choice at every position of recorded texts, as tables."""

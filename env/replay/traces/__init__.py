"""Recordings of texts and of what a draft would have guessed along them."""

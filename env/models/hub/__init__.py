"""Finds, fetches, checks and loads the files of a model."""

"""Malformed files of every format: each is one clear error, within bounds of time and memory."""

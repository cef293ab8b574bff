"""Turning measured rows into summaries, files, tables and figures.

Nothing here knows how the rows came about: live decoding and replayed traces are reported by the same code.
"""

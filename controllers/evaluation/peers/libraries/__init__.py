"""Adapters to other libraries, one file a library."""

"""Errors, files, arrays and interruptions: small tools that every floor uses."""

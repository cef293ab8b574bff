"""Errors, files, arrays and interrupts: small tools for every floor."""

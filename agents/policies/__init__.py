"""Learned policies: their files, networks and controllers."""

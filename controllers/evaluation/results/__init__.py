"""Typed results, their statistics, tables, figures and pages."""

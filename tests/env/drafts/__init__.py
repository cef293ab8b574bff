"""Tests of `env.drafts`."""

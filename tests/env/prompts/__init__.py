"""Tests of `env.prompts`."""

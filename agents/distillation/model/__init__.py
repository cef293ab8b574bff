"""Drafts in training: their shapes, losses and rollouts."""

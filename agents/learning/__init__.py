"""Reinforcement learning of policies on recorded texts."""

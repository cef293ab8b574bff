"""The environments' names in Gymnasium. Nothing heavy is imported until one is made."""

from __future__ import annotations

import gymnasium as gym

__all__ = ["register_environments"]

_ENTRIES = {
    # id: what makes it, and whether a seed does not fix its rewards (wall clock)
    "specgym/Live-v0": ("env.registered:LiveSpeculation", True),
}


def register_environments() -> None:
    """Makes the names known, once: ``gym.make("env:specgym/Live-v0")`` imports `env`, which calls this."""
    for name, (entry_point, nondeterministic) in _ENTRIES.items():
        if name not in gym.registry:
            gym.register(name, entry_point, nondeterministic=nondeterministic)

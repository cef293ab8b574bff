"""The environments' names in Gymnasium. Nothing heavy is imported until one is made."""

from __future__ import annotations

import gymnasium as gym

_ENTRIES = {
    # id: what makes one, what makes many that are stepped together, and whether rewards vary (with the wall clock)
    "specgym/Live-v0": ("specgym.env.gym.live_env:LiveSpeculation", None, True),
    "specgym/Replay-v0": (
        "specgym.env.replay.replay_env:ReplaySpeculation",
        "specgym.env.replay.vector:ReplayVectorEnv",
        False,
    ),
}


def register_environments() -> None:
    """Registers the environments with Gymnasium; `import specgym` calls this. Calling it again changes nothing."""
    for name, (one, many, nondeterministic) in _ENTRIES.items():
        if name not in gym.registry:
            gym.register(name, one, vector_entry_point=many, nondeterministic=nondeterministic)

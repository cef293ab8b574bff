"""Registers the environments with Gymnasium. Heavy libraries are imported when one is made."""

from __future__ import annotations

import gymnasium as gym

from specgym.env.common import processes  # noqa: F401  # from now on it notes whether a process is forked


def register_environments() -> None:
    """Registers the environments; `import specgym` calls this. A second call changes nothing."""
    if "specgym/Live-v0" not in gym.registry:  # its rewards vary with the wall clock
        gym.register("specgym/Live-v0", "specgym.env.gym.live_env:LiveSpeculation", nondeterministic=True)
    if "specgym/Replay-v0" not in gym.registry:
        one, many = "specgym.env.replay.replay_env:ReplaySpeculation", "specgym.env.replay.vector:ReplayVectorEnv"
        gym.register("specgym/Replay-v0", one, vector_entry_point=many)

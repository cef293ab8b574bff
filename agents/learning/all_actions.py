"""Learning from all choices at once: a replay knows what every one of them would have brought.

PPO learns from the choices that it happened to make, of which a few in a hundred are instructive. On a trace that is
needless: what a round brings is tabulated for every choice, so a network can be fitted to the gains of all of them, by
least squares, and the policy is to choose where it expects most. A round's gain is its tokens less the price of its
time. What a choice does to later rounds is left out: the myopic bound is within a few percent of the clairvoyant.

The policy still plays its own rounds, since what it sees of the past depends on what it did. It plays them with some
chance, the likelier the more a choice is expected to bring: the heads' values are gains over `TEMPERATURE`, the logits
of a Boltzmann distribution.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO

from specgym.agents.learning.envs import LearningEnv
from specgym.env.common.arrays import FloatArray

TEMPERATURE = 0.1
"""gain that makes a choice e times as likely in training [tokens]"""
LEAST = 4.0
"""a choice that brings so much less than the best counts as no worse than that: by how much a folly is foolish decides
nothing, and would take up the fit [tokens]"""


class AllActionsRegression(PPO):  # type: ignore[misc]  # the library's types are not checked here
    """PPO's outside, so that it is trained, looked at and saved in the same way, with another inside.

    Of PPO's settings it uses rounds, minibatch, epochs and learning rate.
    """

    _last_obs: Any

    def collect_rollouts(self, env: LearningEnv, callback: Any, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """Plays rounds and notes what every choice would have brought in them."""
        self.policy.set_training_mode(False)
        noted: list[tuple[torch.Tensor, torch.Tensor]] = []
        callback.on_rollout_start()
        for _ in range(n_rollout_steps):
            seen = torch.as_tensor(self._last_obs)
            with torch.no_grad():
                actions = self.policy.get_distribution(seen).sample().numpy()
            gains = env.gains()
            noted.append((seen, torch.as_tensor(relative(gains), dtype=torch.float32)))
            self._last_obs, rewards, self._last_episode_starts, _ = env.step(actions)
            self.num_timesteps += env.num_envs
            callback.update_locals({"rewards": rewards})
            if not callback.on_step():
                return False
        self._noted = [torch.cat(parts) for parts in zip(*noted, strict=True)]
        callback.on_rollout_end()
        return True

    def train(self) -> None:
        """Fits the heads to what was noted."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        seen, gains = self._noted
        errors: list[float] = []
        for _ in range(self.n_epochs):
            order = torch.as_tensor(np.random.permutation(len(seen)))
            for first in range(0, len(seen), self.batch_size):
                rows = order[first : first + self.batch_size]
                heads = self.policy.get_distribution(seen[rows]).distribution
                expected = TEMPERATURE * joint([head.logits for head in heads])
                expected = expected - expected.mean(dim=1, keepdim=True)
                error = (expected - gains[rows]).square().mean()
                self.policy.optimizer.zero_grad()
                error.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                self.policy.optimizer.step()
                errors.append(float(error.detach()))
        self.logger.record("train/squared_error", np.mean(errors))


def relative(gains: FloatArray) -> FloatArray:
    """Gains less their mean over the choices, where none is more than `LEAST` under the best, `float64[n, choices]`."""
    bounded = np.maximum(gains, gains.max(axis=1, keepdims=True) - LEAST)
    return np.asarray(bounded - bounded.mean(axis=1, keepdims=True))


def joint(heads: list[torch.Tensor]) -> torch.Tensor:
    """Logits of all combinations of the heads' choices, the last head's counting fastest, `[n, choices]`.

    Args:
        heads: logits of each head's choices, `[n, choices of the head]`.
    """
    total = heads[0]
    for head in heads[1:]:
        total = (total[:, :, None] + head[:, None, :]).flatten(1)
    return total

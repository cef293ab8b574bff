"""Policy gradients over all choices at once: a replay knows what every one of them would have brought.

PPO learns from the choices that it happened to make, of which a few in a hundred are instructive. On a trace that is
needless: what a round brings is tabulated for every choice, so the expected gain of a policy at a place, the sum of
probability times gain, can be differentiated as it is, without noise from sampling choices (an all-action policy
gradient, Sutton et al. 2001). A round's gain is its tokens less the price of its time. What a choice does to later
rounds is left out: the myopic bound is within a few percent of the clairvoyant.

The policy still plays its own rounds, since what it sees of the past depends on what it did.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO

from agents.reinforcement.envs import LearningEnv

__all__ = ["Hindsight"]


class Hindsight(PPO):  # type: ignore[misc]  # the library's types are not checked here
    """PPO's outside, so that it is trained, looked at and saved in the same way, with another inside.

    Of PPO's settings it uses rounds, minibatch, epochs, learning rate and entropy.
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
            noted.append((seen, torch.as_tensor(gains - gains.mean(axis=1, keepdims=True), dtype=torch.float32)))
            self._last_obs, rewards, self._last_episode_starts, _ = env.step(actions)
            self.num_timesteps += env.num_envs
            callback.update_locals({"rewards": rewards})
            if not callback.on_step():
                return False
        self._noted = [torch.cat(parts) for parts in zip(*noted, strict=True)]
        callback.on_rollout_end()
        return True

    def train(self) -> None:
        """Updates the policy by what was noted."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        seen, gains = self._noted
        expected: list[float] = []
        for _ in range(self.n_epochs):
            order = torch.as_tensor(np.random.permutation(len(seen)))
            for first in range(0, len(seen), self.batch_size):
                rows = order[first : first + self.batch_size]
                heads = self.policy.get_distribution(seen[rows]).distribution
                gain = (joint([head.probs for head in heads]) * gains[rows]).sum(dim=1).mean()
                entropy = sum(head.entropy().mean() for head in heads)
                self.policy.optimizer.zero_grad()
                (-gain - self.ent_coef * entropy).backward()
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                self.policy.optimizer.step()
                expected.append(float(gain.detach()))
        self.logger.record("train/expected_gain", np.mean(expected))


def joint(heads: list[torch.Tensor]) -> torch.Tensor:
    """Probabilities of all combinations of the heads' choices, the last head's counting fastest, `[n, choices]`.

    Args:
        heads: probabilities of each head's choices, `[n, choices of the head]`.
    """
    product = heads[0]
    for head in heads[1:]:
        product = (product[:, :, None] * head[:, None, :]).flatten(1)
    return product

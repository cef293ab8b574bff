"""The price of time that makes reward say throughput.

Throughput is expected tokens over expected time, and no sum of rewards. But the policy that maximises
``tokens - lam * time`` maximises the quotient too if `lam` is the greatest quotient there is; and iterating `lam` to
the quotient of the policy that it led to gets there (Dinkelbach 1967). It differs from machine to machine, and between
greedy and sampled texts, so each has a price of its own.

Since the tokens of an episode are given by its text, the price decides nothing in a whole episode without a discount.
It takes the mean off the reward of a round, so that little is lost by discounting what comes later.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from specgym.env.common.arrays import BoolArray, FloatArray

_FIRST = 1e-6  # weight of the price to begin with against anything that is measured


class Prices:
    """Prices by latency profile and way of decoding, from the rounds that are played.

    Args:
        profiles: how many profiles there are.
        greedy: whether each text is greedy, `bool[texts]`.
        decay: what is kept of the sums at every update.

    Attributes:
        tokens: weighted sum of committed tokens, `float64[profiles, 2]`, greedy before sampled.
        time: likewise of time [plain steps].
    """

    def __init__(self, profiles: int, greedy: BoolArray, decay: float) -> None:
        self.decay = decay
        self._sampled = np.where(greedy, 0, 1)
        self.tokens: FloatArray = np.full((profiles, 2), _FIRST)  # as plain decoding has it
        self.time = self.tokens.copy()
        self.begin()

    @property
    def lam(self) -> FloatArray:
        """The prices, `float64[profiles, 2]` [tokens per plain step]."""
        return self.tokens / self.time

    def begin(self) -> None:
        """Forgets what was added since the last update."""
        self._tokens, self._time = np.zeros_like(self.tokens), np.zeros_like(self.time)

    def add(self, told: dict[str, Any]) -> None:
        """Takes note of a step, as the info of `ReplayVectorEnv.step` tells it."""
        where = told["profile"], self._sampled[told["text"]]
        np.add.at(self._tokens, where, told["tokens"])
        np.add.at(self._time, where, told["plain_steps"])

    def update(self) -> None:
        """Goes over to what was added."""
        self.tokens, self.time = self.decay * self.tokens + self._tokens, self.decay * self.time + self._time
        self.begin()

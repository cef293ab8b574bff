"""Does a latency profile foretell what real texts take? Predicted against measured time, round by round.

The texts are best played between the measurements that the profile is made of: a machine that is a tenth slower some
minutes later says nothing about the profile.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from controllers.registry import make_controller
from controllers.run import steer
from env.latency.costs import RoundCosts
from env.latency.profile import Check, LatencyProfile
from env.live import LiveDecoder
from env.rounds import Request, RoundOutcome
from env.sampling import SamplingSettings

__all__ = ["ProfileCheck"]


@dataclass(frozen=True)
class _Round:
    """What a round was made of, and how long it took."""

    context: int
    outcome: RoundOutcome


class ProfileCheck:
    """Lets controllers generate texts, whose every round is then predicted from its rows.

    The reading of the prompt by the target is no round and is left out. The controllers take turns on every prompt, in
    random order.

    Args:
        decoder: of the pair that the profile is of.
        controllers: names, as for `make_controller`.
        prompts: token ids.
        max_new_tokens: length of the texts [tokens].
        temperature: of the sampled ones; every prompt is continued greedily as well.
        seed: of the order and of the sampling.
    """

    def __init__(
        self,
        decoder: LiveDecoder,
        controllers: Sequence[str],
        prompts: Sequence[tuple[int, ...]],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int = 0,
    ) -> None:
        order, modes = random.Random(seed), {True: SamplingSettings(), False: SamplingSettings(temperature, seed=seed)}
        kinds = [(name, greedy) for name in controllers for greedy in modes]
        self._decoder = decoder
        self._left = [
            (kind, Request(prompt, max_new_tokens, modes[kind[1]], ignore_end=True))
            for prompt in prompts
            for kind in order.sample(kinds, len(kinds))
        ]
        self._texts: dict[tuple[str, bool], list[list[_Round]]] = {kind: [] for kind in kinds}

    @property
    def left(self) -> int:
        """Texts that are not played yet."""
        return len(self._left)

    def play(self, texts: int) -> None:
        """Plays so many texts more, or those that are left."""
        for _ in range(min(texts, self.left)):
            kind, request = self._left.pop(0)
            rounds, context = [], len(request.prompt)
            for index, step in enumerate(steer(self._decoder, make_controller(kind[0]), request)):
                if index > 0:
                    rounds.append(_Round(context, step.outcome))
                context = len(self._decoder.tokens) - 1
            self._texts[kind].append(rounds)

    def checks(self, profile: LatencyProfile) -> tuple[Check, ...]:
        """What the profile says of the texts that were played. Raises `UnmeasuredError` for rows it does not know."""
        return tuple(_check(profile, *kind, texts) for kind, texts in self._texts.items() if texts)


def _check(profile: LatencyProfile, name: str, greedy: bool, texts: list[list[_Round]]) -> Check:
    costs = profile.costs(greedy)
    measured = [sum(each.outcome.seconds.total for each in rounds) for rounds in texts]
    predicted = [sum(_predicted(costs, each) for each in rounds) for rounds in texts]
    return Check(
        controller=name,
        greedy=greedy,
        texts=len(texts),
        rounds=sum(map(len, texts)),
        measured=sum(measured),
        predicted=sum(predicted),
        error=float(np.median([abs(ours / real - 1) for ours, real in zip(predicted, measured, strict=True)])),
    )


def _predicted(costs: RoundCosts, each: _Round) -> float:
    outcome = each.outcome
    return costs.round_seconds(each.context, outcome.level_rows, outcome.drafted + 1, outcome.lookup_nodes)

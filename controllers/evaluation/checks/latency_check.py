"""Does a latency profile foretell what real texts take? Predicted against measured time, round by round.

The texts are best played between the measurements that the profile is made of: a machine that is a tenth slower some
minutes later says nothing about the profile. It may be a tenth slower within seconds; so every text begins and ends
with plain rounds, and is judged by what it takes in these as well.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from specgym.controllers.controller import Controller
from specgym.controllers.registry import make_controller
from specgym.controllers.run import steer
from specgym.env.common.arrays import FloatArray
from specgym.env.decoding.live import LiveDecoder
from specgym.env.latency.costs import RoundCosts
from specgym.env.latency.latency_profile import Check, LatencyProfile
from specgym.env.tree.observation import Observation
from specgym.env.tree.parameters import PLAIN, TreeParameters
from specgym.env.tree.rounds import Request, RoundOutcome
from specgym.env.tree.sampling import SamplingSettings

_PLAINS = 8  # plain rounds before and behind
FRAME = 2 * _PLAINS + 12
"""tokens that a text of the check takes besides those asked for: of plain rounds, one that warms up, and what the last
tree commits more"""


@dataclass(frozen=True)
class _Round:
    """What a round was made of, and how long it took."""

    context: int
    outcome: RoundOutcome


@dataclass
class _Text:
    """Rounds that a controller steered, and the plain ones around them."""

    steered: list[_Round] = field(default_factory=list)
    plain: list[_Round] = field(default_factory=list)


class _Framed:
    """A controller that has to wait: unless it is its turn, rounds are plain."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.wait(True)

    def wait(self, waits: bool) -> None:
        """Says whether the next rounds are plain."""
        self.waits, self.observes_draft = waits, not waits and self.controller.observes_draft

    def reset(self) -> None:
        self.controller.reset()

    def act(self, observation: Observation) -> TreeParameters:
        return PLAIN if self.waits else self.controller.act(observation)


class ProfileCheck:
    """Lets controllers generate texts, whose every round is then predicted from its rows.

    The reading of the prompt by the target is no round and is left out. The controllers take turns on every prompt, in
    random order; before and behind their rounds are some plain ones.

    Args:
        decoder: of the pair that the profile is of.
        controllers: names, as for `make_controller`.
        prompts: token ids.
        max_new_tokens: what controllers generate of a text [tokens].
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
        self._decoder, self._wanted = decoder, max_new_tokens
        self._left = [
            (kind, Request(prompt, max_new_tokens + FRAME, modes[kind[1]], ignore_end=True))
            for prompt in prompts
            for kind in order.sample(kinds, len(kinds))
        ]
        self._texts: dict[tuple[str, bool], list[_Text]] = {kind: [] for kind in kinds}

    @property
    def left(self) -> int:
        """Texts that are not played yet."""
        return len(self._left)

    def play(self, texts: int) -> None:
        """Plays so many texts more, or those that are left."""
        for _ in range(min(texts, self.left)):
            (name, greedy), request = self._left.pop(0)
            self._texts[name, greedy].append(self._played(make_controller(name), request))

    def _played(self, controller: Controller, request: Request) -> _Text:
        text, framed, context = _Text(), _Framed(controller), len(request.prompt)
        for index, step in enumerate(steer(self._decoder, framed, request)):
            found = _Round(context, step.outcome)
            if not framed.waits:
                text.steered.append(found)
            elif index > 1:  # after the prompt and a round that warms up
                text.plain.append(found)
            context = len(self._decoder.tokens) - 1
            framed.wait(len(text.plain) < _PLAINS or _tokens(text.steered) >= self._wanted)
            if len(text.plain) == 2 * _PLAINS:
                break
        return text

    def checks(self, profile: LatencyProfile) -> tuple[Check, ...]:
        """What the profile says of the texts that were played. Raises `UnmeasuredError` for rows it does not know."""
        return tuple(_check(profile, *kind, texts) for kind, texts in self._texts.items() if texts)


def _check(profile: LatencyProfile, name: str, greedy: bool, texts: list[_Text]) -> Check:
    costs = profile.costs(greedy)
    measured = np.array([sum(each.outcome.seconds.total for each in text.steered) for text in texts])
    predicted = np.array([sum(_predicted(costs, each) for each in text.steered) for text in texts])
    plain = np.array([costs.plain_seconds(int(np.median([each.context for each in text.steered]))) for text in texts])
    steps = predicted / plain / [_tokens(text.steered) for text in texts]
    slower = [_slower(costs, text.plain) for text in texts]
    measured_steps = steps * measured / predicted / slower
    return Check(
        controller=name,
        greedy=greedy,
        texts=len(texts),
        rounds=sum(len(text.steered) for text in texts),
        measured=float(measured.sum()),
        predicted=float(predicted.sum()),
        error=_error(predicted, measured),
        measured_steps=float(np.median(measured_steps)),
        predicted_steps=float(np.median(steps)),
        steps_error=_error(steps, measured_steps),
    )


def _slower(costs: RoundCosts, rounds: list[_Round]) -> float:
    """How many times as slow as in its profile the machine was, by its plain rounds."""
    return float(np.median([each.outcome.seconds.total / _predicted(costs, each) for each in rounds]))


def _error(predicted: FloatArray, measured: FloatArray) -> float:
    return float(np.median(np.abs(predicted / measured - 1)))


def _tokens(rounds: Sequence[_Round]) -> int:
    return sum(len(each.outcome.tokens) for each in rounds)


def _predicted(costs: RoundCosts, each: _Round) -> float:
    outcome = each.outcome
    return costs.round_seconds(each.context, outcome.level_rows, outcome.drafted + 1, outcome.lookup_nodes)

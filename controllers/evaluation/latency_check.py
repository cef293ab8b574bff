"""Does a latency profile foretell what real texts take? Predicted against measured time, round by round."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from controllers.registry import make_controller
from controllers.run import steer
from env.latency.profile import Check, LatencyProfile
from env.live import LiveDecoder
from env.rounds import Request
from env.sampling import SamplingSettings

__all__ = ["check_profile"]


@dataclass(frozen=True)
class _Text:
    """One text of one controller: its rounds after the prompt's, and what they took and should have taken [s]."""

    rounds: int
    measured: float
    predicted: float


def check_profile(
    profile: LatencyProfile,
    decoder: LiveDecoder,
    controllers: Sequence[str],
    prompts: Sequence[tuple[int, ...]],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int = 0,
    progress: Callable[[str], None] = lambda name: None,
) -> list[Check]:
    """Lets controllers generate texts, and predicts every round of them from its rows.

    The reading of the prompt by the target is no round and is left out. The controllers take turns on every prompt, in
    random order.

    Args:
        profile: what is checked.
        decoder: of the pair that it was measured on.
        controllers: names, as for `make_controller`.
        prompts: token ids.
        max_new_tokens: length of the texts [tokens].
        temperature: of the sampled ones; every prompt is continued greedily as well.
        seed: of the order and of the sampling.
        progress: called with a controller's name before each of its texts.

    Raises:
        UnmeasuredError: a round had more rows than the profile knows.
    """
    order, modes = random.Random(seed), {True: SamplingSettings(), False: SamplingSettings(temperature, seed=seed)}
    texts: dict[tuple[str, bool], list[_Text]] = {(name, greedy): [] for name in controllers for greedy in modes}
    for prompt in prompts:
        for name, greedy in order.sample(list(texts), len(texts)):
            progress(name)
            request = Request(prompt, max_new_tokens, modes[greedy], ignore_end=True)
            texts[name, greedy].append(_generate(profile, decoder, name, request))
    return [_check(name, greedy, found) for (name, greedy), found in texts.items()]


def _generate(profile: LatencyProfile, decoder: LiveDecoder, controller: str, request: Request) -> _Text:
    """One text and its account."""
    costs = profile.costs(request.sampling.greedy)
    rounds, measured, predicted, context = 0, 0.0, 0.0, len(request.prompt)
    for index, step in enumerate(steer(decoder, make_controller(controller), request)):
        if index > 0:
            outcome = step.outcome
            rounds += 1
            measured += outcome.seconds.total
            predicted += costs.round_seconds(context, outcome.level_rows, outcome.drafted + 1, outcome.lookup_nodes)
        context = len(decoder.tokens) - 1
    return _Text(rounds, measured, predicted)


def _check(name: str, greedy: bool, texts: list[_Text]) -> Check:
    return Check(
        controller=name,
        greedy=greedy,
        texts=len(texts),
        rounds=sum(text.rounds for text in texts),
        measured=sum(text.measured for text in texts),
        predicted=sum(text.predicted for text in texts),
        error=float(np.median([abs(text.predicted - text.measured) / text.measured for text in texts])),
    )

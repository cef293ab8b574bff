"""The loop in which a controller steers a decoder through a request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from specgym.controllers.controller import Controller
from specgym.env.tree.rounds import Decoder, FinishReason, Request, RoundOutcome

_PARTS = ("draft", "draft_forward", "verify", "verify_forward", "commit")  # fields of a round's `seconds`


@dataclass(frozen=True, slots=True)
class SteeredRound:
    """A round and the time of its choice."""

    outcome: RoundOutcome
    controller_seconds: float
    """time of observing and choosing; a draft forward for the observation is part of the outcome instead [s]"""


def steer(decoder: Decoder, controller: Controller, request: Request) -> Iterator[SteeredRound]:
    """Runs a request round by round. The first round reads the prompt and is not steered.

    Raises:
        LimitError: the request does not fit the decoder's context.
        NumericalError: a model returned NaN or infinite logits.
        RuntimeError: another text was started on the decoder meanwhile.
    """
    controller.reset()
    request = replace(request)  # its identity tells whether the decoder still has this text
    outcome = decoder.start(request)
    yield SteeredRound(outcome, 0.0)
    while outcome.finished is None:
        if decoder.request is not request:
            raise RuntimeError("Another text was started on this decoder. Give each its own, such as `pair.decoder()`.")
        if controller.observes_draft:
            decoder.observe(draft=True)  # the round is charged for the forward; observing again costs none
        before = time.perf_counter()
        parameters = controller.act(decoder.observe(controller.observes_draft))
        elapsed = time.perf_counter() - before
        outcome = decoder.round(parameters)
        yield SteeredRound(outcome, elapsed)


@dataclass
class Generation:
    """A finished text with its counts and times."""

    tokens: list[int] = field(default_factory=list)
    """the generated token ids"""
    finished: FinishReason | None = None
    """why the text ended"""
    seconds: float = 0.0
    """wall time, everything included [s]"""
    rounds: int = 0
    """target forwards, the prompt's included"""
    drafted: int = 0
    """draft tokens verified [tokens]"""
    accepted: int = 0
    """draft tokens committed [tokens]"""
    seconds_by_part: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*_PARTS, "controller"), 0.0))
    """wall time by stage; a model forward is part of its stage [s]"""

    def add(self, step: SteeredRound) -> None:
        """Adds a round."""
        outcome = step.outcome
        self.tokens.extend(outcome.tokens)
        self.finished = outcome.finished
        self.rounds += 1
        self.drafted += outcome.drafted
        self.accepted += outcome.accepted
        for part in _PARTS:
            self.seconds_by_part[part] += getattr(outcome.seconds, part)
        self.seconds_by_part["controller"] += step.controller_seconds


def run(decoder: Decoder, controller: Controller, request: Request) -> Generation:
    """Runs a request to its end. Raises as `steer` does."""
    generation = Generation()
    before = time.perf_counter()
    for step in steer(decoder, controller, request):
        generation.add(step)
    generation.seconds = time.perf_counter() - before
    return generation

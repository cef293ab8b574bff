"""Does a process that serves one request after the other grow?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specgym.controllers.controller import Controller
from specgym.controllers.evaluation.profiling.memory import memory_owned
from specgym.controllers.run import run
from specgym.env.decoding.live import LiveDecoder
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings

MAX_NEW_TOKENS = 16
"""length of an answer [tokens]"""
WARM_UP = 100
"""requests before the memory is first looked at: some of what is kept for numbers of rows is seldom needed"""


@dataclass(frozen=True)
class Growth:
    """Memory of the process's own before and after many short requests [bytes]; None where the system does not tell."""

    requests: int  # after the warm-up
    after_warm_up: int | None
    after_last: int | None

    @property
    def bytes_per_request(self) -> float | None:
        """What a request left behind on average [bytes]."""
        if self.after_warm_up is None or self.after_last is None:
            return None
        return (self.after_last - self.after_warm_up) / self.requests


def check_growth(
    decoder: LiveDecoder,
    controller: Controller,
    prompts: Sequence[tuple[int, ...]],
    requests: int,
    *,
    progress: Callable[[], None] = lambda: None,
) -> Growth:
    """Generates short answers, greedy and sampled in turns, and looks at the memory after a warm-up and at the end.

    Args:
        decoder: of the pair.
        controller: who steers.
        prompts: token ids, taken in turns; the warm-up takes all of its own from the same ones.
        requests: after the warm-up.
        progress: called after every request.

    Raises:
        LimitError: a prompt leaves no room in the context.
    """
    after_warm_up = None
    for number, prompt in enumerate(itertools.islice(itertools.cycle(prompts), WARM_UP + requests)):
        if number == WARM_UP:
            after_warm_up = memory_owned(decoder.target.device)
        sampling = SamplingSettings(float(number % 2), seed=number)
        run(decoder, controller, Request(prompt, MAX_NEW_TOKENS, sampling, ignore_end=True))
        progress()
    return Growth(requests, after_warm_up, memory_owned(decoder.target.device))

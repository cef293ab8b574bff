"""A request, its rounds, and what drives them: the interface that live decoding and replay share."""

from __future__ import annotations

import enum
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import LimitError
from specgym.env.tree.observation import Observation
from specgym.env.tree.parameters import PLAIN, TreeParameters
from specgym.env.tree.sampling import SamplingSettings
from specgym.env.tree.tree import TokenTree


class FinishReason(enum.Enum):
    """Why a text is at its end."""

    END_OF_SEQUENCE = "end of sequence"
    TOKEN_LIMIT = "token limit"
    CONTEXT_LIMIT = "context limit"


def check_limit(name: str, value: int) -> None:
    """Refuses a limit that is not positive.

    Raises:
        LimitError: it is below 1.
    """
    if value < 1:
        raise LimitError(f"{name} must be 1 or more; got {value}.")


def check_fits(prompt: int, context: int) -> None:
    """Refuses a prompt that leaves no room for an answer.

    Args:
        prompt: its length [tokens].
        context: longest text that the target reads [tokens].

    Raises:
        LimitError: it is as long as the context, or longer.
    """
    if prompt >= context:
        raise LimitError(
            f"The prompt has {prompt} tokens; this target reads at most {context}, answer included. "
            f"Shorten the prompt to {context - 1} tokens or fewer."
        )


@dataclass(frozen=True)
class Request:
    """One text to be continued.

    Raises:
        LimitError: the prompt is empty or `max_new_tokens` is not positive.
    """

    prompt: tuple[int, ...]
    """the prompt's token ids"""
    max_new_tokens: int = 256
    """most tokens to generate, never overshot [tokens]"""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    """how tokens are chosen"""
    ignore_end: bool = False
    """whether to go on after an end-of-sequence token"""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise LimitError("The prompt is empty: expected at least one token. Give some text to continue.")
        check_limit("max_new_tokens", self.max_new_tokens)


@dataclass(slots=True)
class RoundSeconds:
    """Wall time of a round by stage [s]. The model forwards are parts of their stages.

    A draft forward that was made for an observation, before the round, is part of the round's drafting.
    """

    draft: float = 0.0
    draft_forward: float = 0.0
    verify: float = 0.0
    verify_forward: float = 0.0
    commit: float = 0.0

    @property
    def total(self) -> float:
        """All stages together [s]."""
        return self.draft + self.verify + self.commit


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """What a round did."""

    tokens: tuple[int, ...]
    """tokens committed, at least one [token ids]"""
    drafted: int = 0
    """nodes verified, without the root [nodes]"""
    depth: int = 0
    """depth of the verified tree [tokens]"""
    accepted: int = 0
    """draft tokens committed [tokens]"""
    drafted_lookup: int = 0
    """of the nodes verified, those that prompt lookup alone proposed [nodes]"""
    accepted_lookup: int = 0
    """of the draft tokens committed, those that prompt lookup alone proposed [tokens]"""
    level_rows: tuple[int, ...] = ()
    """rows of each forward of the draft model, one a level: first the committed tokens that it still owed, the root
    included, then the nodes expanded; empty if it was not asked [rows]"""
    lookup_nodes: int = 0
    """nodes that prompt lookup was asked about, all levels together [nodes]"""
    finished: FinishReason | None = None
    """why the text ended with this round, if it did"""
    seconds: RoundSeconds = field(default_factory=RoundSeconds)
    """where the time went"""


class Decoder(Protocol):
    """Rounds on one request at a time. Whoever drives it cannot tell real models from a recording."""

    @property
    def request(self) -> Request:
        """The request that was started last, the very object."""

    @property
    def tokens(self) -> Sequence[int]:
        """Prompt and text so far [token ids]."""

    @property
    def tree(self) -> TokenTree:
        """The tree that the last round verified; only a root, the prompt's last token, after `start`."""

    @property
    def accepted(self) -> IntArray:
        """Nodes of `tree` that were committed, from the root's child on, `int64[accepted]`."""

    def start(self, request: Request) -> RoundOutcome:
        """Reads the prompt and commits the first token."""

    def observe(self, draft: bool = False) -> Observation:
        """What a controller may see now; at the end of a text, what it has come to.

        Args:
            draft: whether to ask the draft model about the root as well. That costs a forward, once a round, which
                the round that follows makes use of and accounts for. It changes no token and no tree. At the end of a
                text there is no such round, and the model is not asked.
        """

    def round(self, parameters: TreeParameters) -> RoundOutcome:
        """Drafts a tree, verifies it and commits the accepted path and a bonus token."""


def measure_plain_step(decoder: Decoder, request: Request, rounds: int = 8) -> float:
    """Median time of plain rounds after a warm-up, at the beginning of a request [s]. The decoder's text is lost.

    Args:
        decoder: any that can go on past the request's own end.
        request: whose prompt is continued.
        rounds: rounds measured.

    Raises:
        LimitError: the prompt leaves no room for a round.
    """
    outcome = decoder.start(replace(request, max_new_tokens=rounds + 2, ignore_end=True))
    seconds = []
    while outcome.finished is None:
        outcome = decoder.round(PLAIN)
        seconds.append(outcome.seconds.total)
    if not seconds:
        raise LimitError("The prompt leaves no room to measure a plain step. Shorten it, or give plain_step_seconds.")
    return statistics.median(seconds[1:] or seconds)


class Stopwatch:
    """Laps of wall time."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        elapsed, self.last = now - self.last, now
        return elapsed

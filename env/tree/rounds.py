"""Requests, rounds and decoders: the interface that live decoding and replay share."""

from __future__ import annotations

import enum
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import LimitError, ParameterError, check_limit
from specgym.env.tree.observation import Observation
from specgym.env.tree.parameters import PLAIN, TreeParameters
from specgym.env.tree.processors import Processor, check_processors
from specgym.env.tree.sampling import SamplingSettings
from specgym.env.tree.tree import TokenTree


class FinishReason(enum.Enum):
    """The reason why a text ended."""

    END_OF_SEQUENCE = "end of sequence"
    TOKEN_LIMIT = "token limit"
    CONTEXT_LIMIT = "context limit"


def check_fits(prompt: int, context: int) -> None:
    """Refuses a prompt that leaves no room for an answer.

    Args:
        prompt: length of the prompt [tokens].
        context: longest text that the target reads [tokens].

    Raises:
        LimitError: the prompt is as long as the context, or longer.
    """
    if prompt >= context:
        raise LimitError(
            f"The prompt has {prompt} tokens; this target reads at most {context}, answer included. "
            f"Shorten the prompt to {context - 1} tokens or fewer."
        )


def check_known(prompt: Sequence[int], vocabulary: int) -> None:
    """Refuses a prompt that a target cannot read.

    Args:
        prompt: token ids.
        vocabulary: number of tokens that the target has.

    Raises:
        LimitError: a token is not among them, as after a token was added to the tokenizer but not to the model.
    """
    if not 0 <= min(prompt) <= max(prompt) < vocabulary:
        unknown = next(token for token in prompt if not 0 <= token < vocabulary)
        raise LimitError(
            f"The prompt holds token {unknown}; this target has tokens 0 to {vocabulary - 1}. Leave that token out, "
            "or use the tokenizer that the target was trained with."
        )


@dataclass(frozen=True)
class Request:
    """One text to continue.

    Raises:
        LimitError: the prompt is empty or `max_new_tokens` is not positive.
        ParameterError: a processor that is not supported, or `processors` are given and
            `sampling` asks for more than greedy decoding or temperature 1.
    """

    prompt: tuple[int, ...]
    """the prompt's token ids"""
    max_new_tokens: int = 256
    """most tokens to generate, never overshot [tokens]"""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    """how tokens are chosen"""
    ignore_end: bool = False
    """whether to go on after an end-of-sequence token"""
    processors: tuple[Processor, ...] | None = None
    """logits processors, called in this order in place of those that `sampling` names; None for the latter. A positive
    temperature then only says that noise is added to the processed scores"""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise LimitError("The prompt is empty: expected at least one token. Give some text to continue.")
        check_limit("max_new_tokens", self.max_new_tokens)
        check_processors(self.processors or ())
        if self.processors is not None and not self.sampling.unprocessed:
            raise ParameterError(
                "Expected temperature 0 or 1, top_k=0 and top_p=1 beside processors, which replace them; got "
                f"{self.sampling}. Give TemperatureLogitsWarper, TopKLogitsWarper and TopPLogitsWarper instead."
            )


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
    """The outcome of a round."""

    tokens: tuple[int, ...]
    """tokens committed, at least one [token ids]"""
    drafted: int = 0
    """nodes verified, without the root [nodes]"""
    depth: int = 0
    """depth of the verified tree [tokens]"""
    accepted: int = 0
    """draft tokens committed [tokens]"""
    drafted_lookup: int = 0
    """verified nodes that prompt lookup alone proposed [nodes]"""
    accepted_lookup: int = 0
    """committed draft tokens that prompt lookup alone proposed [tokens]"""
    level_rows: tuple[int, ...] = ()
    """rows of each forward of the draft model, one a level: first the committed tokens that it had not read, the root
    included, then the nodes expanded; empty if the model was not asked [rows]"""
    lookup_nodes: int = 0
    """nodes that prompt lookup expanded, all levels together [nodes]"""
    finished: FinishReason | None = None
    """why the text ended with this round, if it did"""
    seconds: RoundSeconds = field(default_factory=RoundSeconds)
    """where the time went"""


class Decoder(Protocol):
    """Plays rounds on one request at a time, on real models or on a recording, with the same interface."""

    @property
    def request(self) -> Request:
        """The request that was started last; this is the same object."""

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
        """Returns what a controller may see now, or at the end of a text its last state.

        Args:
            draft: whether to ask the draft model about the root as well. This costs a forward, once a round, which the
                following round uses and accounts for. It changes no token and no tree. At the end of a text the model
                is not asked.
        """

    def round(self, parameters: TreeParameters) -> RoundOutcome:
        """Drafts a tree, verifies it and commits the accepted path and a bonus token."""


def measure_plain_step(decoder: Decoder, request: Request, rounds: int = 8) -> float:
    """Measures the median time of plain rounds after a warm-up, at the beginning of a request [s].

    Args:
        decoder: any that can go on past the request's own end. Its current text is lost.
        request: the request whose prompt is continued.
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

"""A request, its rounds, and what drives them: the interface that live decoding and replay share."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass, field
from typing import Protocol

from env.errors import LimitError
from env.observation import Observation
from env.parameters import TreeParameters
from env.sampling import SamplingSettings

__all__ = [
    "Decoder",
    "FinishReason",
    "Request",
    "RoundOutcome",
    "RoundSeconds",
    "Stopwatch",
    "check_fits",
    "check_limit",
]


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
    """Wall time of a round by stage [s]. The model forwards are parts of their stages."""

    draft: float = 0.0
    draft_forward: float = 0.0
    verify: float = 0.0
    verify_forward: float = 0.0
    commit: float = 0.0


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
    finished: FinishReason | None = None
    """why the text ended with this round, if it did"""
    seconds: RoundSeconds = field(default_factory=RoundSeconds)
    """where the time went"""


class Decoder(Protocol):
    """Rounds on one request at a time. Whoever drives it cannot tell real models from a recording."""

    def start(self, request: Request) -> RoundOutcome:
        """Reads the prompt and commits the first token."""

    def observe(self) -> Observation:
        """What a controller may see now."""

    def round(self, parameters: TreeParameters) -> RoundOutcome:
        """Drafts a tree, verifies it and commits the accepted path and a bonus token."""


class Stopwatch:
    """Laps of wall time."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        elapsed, self.last = now - self.last, now
        return elapsed

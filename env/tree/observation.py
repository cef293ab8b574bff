"""Observations: the state that a controller sees at the start of a round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

WINDOW = 10
"""rounds that are remembered [rounds]"""
ROOT_CHILDREN = 4
"""children of the root that are shown [nodes]"""
LEVEL_PRIOR = 0.1
"""cost of a draft level where nothing is known: that of a draft of a tenth of the target [plain steps]"""
ROW_PRIOR = 0.01
"""cost of a verified row where nothing is known: that of a machine with room [plain steps]"""


class PastRound(NamedTuple):
    """The tree of a past round."""

    drafted: int
    """nodes verified, without the root [nodes]"""
    depth: int
    """depth of the tree; 0 if nothing was drafted [tokens]"""
    accepted: int
    """draft tokens committed [tokens]"""


class Costs(Protocol):
    """Costs of a little more speculation on a machine, in plain decoding steps."""

    def level_cost(self, context: int) -> float:
        """Cost of one more level of draft forwards after `context` tokens [plain steps]."""

    def row_cost(self, context: int) -> float:
        """Cost of one more row in a verification after `context` tokens [plain steps]."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The state of a request. All of it is free, except the draft's guesses, which are included on request only."""

    position: int
    """absolute position of the root, the last committed token [tokens]"""
    generated: int
    """tokens generated so far [tokens]"""
    remaining: int
    """tokens that may still come before a limit is met [tokens]"""
    last_drafted: int = 0
    """nodes of the last round's tree, without the root; 0 before the first round [nodes]"""
    last_depth: int = 0
    """depth of the last round's tree [tokens]"""
    last_accepted: int = 0
    """draft tokens accepted in the last round [tokens]"""
    lookup_match: int = 0
    """length of the longest earlier text that ends as the text does now, at most 16; 0 if there is none [tokens]"""
    lookup_rate: float = 0.0
    """probability that the token that followed there comes next, by lookup's success in this text; 0 if there is none
    [probability]"""
    recent: tuple[PastRound, ...] = ()
    """the last rounds of this request, at most `WINDOW`, the latest one last, without the reading of the prompt"""
    greedy: bool = True
    """whether the likeliest token is always taken, instead of a sampled one"""
    root_log_probs: tuple[float, ...] = ()
    """log-probabilities by the draft model, not calibrated, of the likeliest children of the root, best first and at
    most `ROOT_CHILDREN`; empty if not requested, without a draft model, or where the text is too long for it. They cost
    the first draft forward of the round, whose time is part of that round"""
    level_cost: float = 0.0
    """cost of one more level of draft forwards on this machine; 0 if unknown [plain steps]"""
    row_cost: float = 0.0
    """cost of one more row of a verification on this machine; 0 if unknown [plain steps]"""

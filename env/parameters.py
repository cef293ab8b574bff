"""What a controller chooses for a round."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from env.errors import ParameterError

__all__ = ["PLAIN", "SOURCES", "Source", "TreeParameters"]

Source = Literal["model", "lookup", "both"]
"""where the nodes of a tree come from: the draft model, prompt lookup, or the two merged"""
SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True, slots=True)
class TreeParameters:
    """The shape that the next token tree may take.

    Raises:
        ParameterError: a value outside its range, or bounds that contradict each other.
    """

    base_depth: int = 4
    """depth that every branch may grow to; 0 decodes plainly, without a draft [tokens]"""
    max_depth: int = 4
    """depth that the likeliest branches may grow to, at least `base_depth` [tokens]"""
    min_branch: int = 1
    """children of a node whose confidence is over `high_confidence` [nodes]"""
    mid_branch: int = 2
    """children of a node whose confidence is neither high nor low [nodes]"""
    max_branch: int = 4
    """children of a node whose confidence is under `low_confidence` [nodes]"""
    high_confidence: float = 0.8
    """confidence (the draft's top-1 probability) over which a node gets `min_branch` children [probability]"""
    low_confidence: float = 0.3
    """confidence under which a node gets `max_branch` children [probability]"""
    early_stop: float = 0.0
    """reach under which a node is not expanded [probability]"""
    deep_expand: float = 1.0
    """reach that a node at `base_depth` or deeper must exceed to be expanded [probability]"""
    frontier_width: int = 8
    """most nodes expanded in one level, the likeliest first: the rows of a draft forward [nodes]"""
    node_budget: int = 31
    """most nodes verified, the likeliest first: with the root 32 rows of a verification by default [nodes]"""
    source: Source = "model"
    """who proposes nodes: ``"model"``, ``"lookup"``, which costs no draft forward, or ``"both"``; a pair whose draft is
    prompt lookup has nothing else to ask"""
    calibrated: bool = True
    """whether reach is made of calibrated probabilities where the draft model has a calibrator, or of its own"""

    def __post_init__(self) -> None:
        if not 0 <= self.base_depth <= self.max_depth:
            self._refuse("0 <= base_depth <= max_depth", "base_depth", "max_depth")
        if not 1 <= self.min_branch <= self.mid_branch <= self.max_branch:
            self._refuse("1 <= min_branch <= mid_branch <= max_branch", "min_branch", "mid_branch", "max_branch")
        if not 0 <= self.low_confidence <= self.high_confidence <= 1:
            self._refuse("0 <= low_confidence <= high_confidence <= 1", "low_confidence", "high_confidence")
        if not (0 <= self.early_stop <= 1 and 0 <= self.deep_expand <= 1):
            self._refuse("early_stop and deep_expand within 0 and 1", "early_stop", "deep_expand")
        if self.frontier_width < 1 or self.node_budget < 1:
            self._refuse("frontier_width and node_budget of 1 or more", "frontier_width", "node_budget")
        if self.source not in SOURCES:
            self._refuse(f"source to be one of {', '.join(SOURCES)}", "source")

    def _refuse(self, expected: str, *names: str) -> None:
        came = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        raise ParameterError(f"Tree parameters need {expected}; got {came}.")

    @property
    def speculates(self) -> bool:
        """Whether a tree is drafted at all."""
        return self.base_depth > 0

    def capped(self, depth: int) -> TreeParameters:
        """These parameters with no branch deeper than `depth` tokens."""
        if depth >= self.max_depth:
            return self
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return TreeParameters(
            **values | {"max_depth": max(depth, 0), "base_depth": min(self.base_depth, max(depth, 0))}
        )


PLAIN = TreeParameters(base_depth=0, max_depth=0)
"""Plain decoding: nothing is drafted, one token a round."""

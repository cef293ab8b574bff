"""What a controller chooses for a round."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from specgym.env.common.errors import ParameterError

Source = Literal["model", "lookup", "both"]
"""where the nodes of a tree come from: the draft model, prompt lookup, or the two merged"""
SOURCES: tuple[Source, ...] = get_args(Source)
STOPS = {"min_reach": 0.0, "min_confidence": 0.0, "max_entropy": 0.0, "min_level_reach": 0.0}
"""fields that recordings and grids leave out where they stop nothing, as they do by these values"""


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
    min_reach: float = 0.0
    """reach under which a node is left out, neither expanded nor verified [probability]"""
    min_confidence: float = 0.0
    """probability given its parent, the factor that it adds to reach, under which a node is not expanded
    [probability]"""
    max_entropy: float = 0.0
    """entropy of the draft model's distribution, before any noise, over which none of the children drawn from it is
    expanded; 0 for no bound. What prompt lookup alone proposes comes from no distribution and is not bound [nats]"""
    min_level_reach: float = 0.0
    """reach of all nodes that a level below the root would expand, summed, under which the level is not drafted: that
    sum is the most that its children can add to the expected tokens of the round [tokens]"""

    def __post_init__(self) -> None:
        if not 0 <= self.base_depth <= self.max_depth:
            self._refuse("0 <= base_depth <= max_depth", "base_depth", "max_depth")
        if not 1 <= self.min_branch <= self.mid_branch <= self.max_branch:
            self._refuse("1 <= min_branch <= mid_branch <= max_branch", "min_branch", "mid_branch", "max_branch")
        if not 0 <= self.low_confidence <= self.high_confidence <= 1:
            self._refuse("0 <= low_confidence <= high_confidence <= 1", "low_confidence", "high_confidence")
        if not (0 <= self.early_stop <= 1 and 0 <= self.deep_expand <= 1):
            self._refuse("early_stop and deep_expand within 0 and 1", "early_stop", "deep_expand")
        if not (0 <= self.min_reach <= 1 and 0 <= self.min_confidence <= 1):
            self._refuse("min_reach and min_confidence within 0 and 1", "min_reach", "min_confidence")
        if not (0 <= self.max_entropy < math.inf and 0 <= self.min_level_reach < math.inf):
            self._refuse("max_entropy and min_level_reach of 0 or more", "max_entropy", "min_level_reach")
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

    def record(self) -> dict[str, Any]:
        """The fields as JSON can hold them, without those `STOPS` that stop nothing: older files do not know them."""
        return {name: value for name, value in asdict(self).items() if value != STOPS.get(name)}


PLAIN = TreeParameters(base_depth=0, max_depth=0)
"""Plain decoding: nothing is drafted, one token a round."""

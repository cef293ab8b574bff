"""Tree parameters: what a controller chooses for a round."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from specgym.env.common.errors import ParameterError

Source = Literal["model", "lookup", "both"]
"""where the nodes of a tree come from: the draft model, prompt lookup, or both, merged"""
SOURCES: tuple[Source, ...] = get_args(Source)
STOPS = {"min_reach": 0.0, "min_confidence": 0.0, "max_entropy": 0.0, "min_level_reach": 0.0}
"""optional stopping rules with the values that switch them off; recordings and grids leave out rules that are off"""


@dataclass(frozen=True, slots=True)
class TreeParameters:
    """The shape that the next token tree may take.

    A node's *confidence* is the draft's top-1 probability there. A node's *reach* is the probability that the target's
    text passes through it: the product of (calibrated) probabilities along its path.

    Raises:
        ParameterError: a value outside its range, or bounds that contradict each other.
    """

    base_depth: int = 4
    """depth that every branch may grow to; 0 decodes plainly, without a draft [tokens]"""
    max_depth: int = 4
    """depth that the likeliest branches may grow to, at least `base_depth` [tokens]"""
    min_branch: int = 1
    """children of a node with confidence above `high_confidence` [nodes]"""
    mid_branch: int = 2
    """children of a node with confidence between the two thresholds [nodes]"""
    max_branch: int = 4
    """children of a node with confidence below `low_confidence` [nodes]"""
    high_confidence: float = 0.8
    """confidence above which a node gets `min_branch` children [probability]"""
    low_confidence: float = 0.3
    """confidence below which a node gets `max_branch` children [probability]"""
    early_stop: float = 0.0
    """lowest reach of a node that is expanded [probability]"""
    deep_expand: float = 1.0
    """reach that a node at `base_depth` or deeper must exceed to be expanded [probability]"""
    frontier_width: int = 8
    """most nodes expanded in one level, the likeliest first: the rows of a draft forward [nodes]"""
    node_budget: int = 31
    """most nodes verified, the likeliest first; with the root, the default makes 32 rows of a verification [nodes]"""
    source: Source = "model"
    """who proposes nodes: ``"model"``, ``"lookup"``, which costs no draft forward, or ``"both"``; ignored where the
    pair's draft is prompt lookup itself"""
    calibrated: bool = True
    """whether reach uses calibrated probabilities, where the draft model has a calibrator"""
    min_reach: float = 0.0
    """lowest reach of a node in the tree; less likely nodes are neither expanded nor verified [probability]"""
    min_confidence: float = 0.0
    """lowest probability given its parent of a node that is expanded [probability]"""
    max_entropy: float = 0.0
    """highest entropy of the draft model's distribution, before noise, whose children are expanded; 0 for no bound.
    Nodes of prompt lookup alone have no distribution and no bound [nats]"""
    min_level_reach: float = 0.0
    """lowest summed reach of the nodes that a level below the root expands. The sum is the most expected tokens that
    their children can add to the round; for less, the level is not drafted [tokens]"""

    def __post_init__(self) -> None:
        branches = 1 <= self.min_branch <= self.mid_branch <= self.max_branch
        confidences = 0 <= self.low_confidence <= self.high_confidence <= 1
        self._need(0 <= self.base_depth <= self.max_depth, "0 <= base_depth <= max_depth")
        self._need(branches, "1 <= min_branch <= mid_branch <= max_branch")
        self._need(confidences, "0 <= low_confidence <= high_confidence <= 1")
        self._need(0 <= self.early_stop <= 1 and 0 <= self.deep_expand <= 1, "early_stop and deep_expand from 0 to 1")
        self._need(
            0 <= self.min_reach <= 1 and 0 <= self.min_confidence <= 1, "min_reach and min_confidence from 0 to 1"
        )
        bounds = 0 <= self.max_entropy < math.inf and 0 <= self.min_level_reach < math.inf
        self._need(bounds, "max_entropy and min_level_reach of 0 or more, finite")
        self._need(self.frontier_width >= 1 and self.node_budget >= 1, "frontier_width and node_budget of 1 or more")
        self._need(self.source in SOURCES, f"source to be one of {', '.join(SOURCES)}")

    def _need(self, right: bool, expected: str) -> None:
        """Refuses values that are not as `expected`, a text that names their fields."""
        if not right:
            names = [word for word in re.findall(r"\w+", expected) if word in self.__dataclass_fields__]
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
        depth = max(depth, 0)
        return replace(self, max_depth=depth, base_depth=min(self.base_depth, depth))

    def record(self) -> dict[str, Any]:
        """The fields as JSON values, without stopping rules that are off (files of earlier versions have none)."""
        return {name: value for name, value in asdict(self).items() if value != STOPS.get(name)}


PLAIN = TreeParameters(base_depth=0, max_depth=0)
"""plain decoding: nothing is drafted, one token a round"""

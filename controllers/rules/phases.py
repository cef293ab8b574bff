"""The plan's fixed tree and its three adaptive phases.

Phase 1 chooses the children of a node by the draft's confidence. Phase 2 chooses how deep each branch grows by its
reach. Both act inside a round: the growth rule (`specgym.env.tree.growth`) applies their thresholds node by node.
Phase 3 acts between rounds: it moves two of these thresholds by the recent acceptance rate.
"""

from __future__ import annotations

from collections import deque
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal

from specgym.controllers.controller import Rule
from specgym.env.common.errors import ParameterError
from specgym.env.tree.observation import Observation
from specgym.env.tree.parameters import Source, TreeParameters

PHASE_1 = TreeParameters(
    base_depth=4,
    max_depth=4,
    high_confidence=0.8,
    min_branch=1,  # child above high_confidence
    mid_branch=2,  # children between the two
    low_confidence=0.3,
    max_branch=4,  # children below low_confidence
)
"""Branching by confidence: the surer the draft is at a node, the fewer children the node gets."""

PHASE_2 = replace(
    PHASE_1,
    early_stop=0.1,  # cumulative probability (reach) below which a branch stops
    deep_expand=0.7,  # cumulative probability above which it grows past base_depth
    max_depth=8,  # depth that no branch exceeds
)
"""Phase 1 with a depth for each branch: unlikely branches stop early, and likely ones grow deeper."""

DEPTH_RANGE = (2, 10)
"""least and greatest base depth of Phase 3 [tokens]"""
THRESHOLD_RANGE = (0.5, 0.95)
"""least and greatest high-confidence threshold of Phase 3 [probability]"""


class StaticController(Rule):
    """Chooses the same parameters every round."""

    def __init__(self, parameters: TreeParameters) -> None:
        self.parameters = parameters

    def act(self, observation: Observation) -> TreeParameters:
        """Returns the parameters."""
        return self.parameters


def uniform_tree(branch: int, depth: int, **fields: Any) -> TreeParameters:
    """Returns a tree of `depth` levels with `branch` children at every node; `fields` are further parameters."""
    return TreeParameters(depth, depth, branch, branch, branch, **fields)


def fixed_tree(branch: int = 2, depth: int = 4, node_budget: int = 128, source: Source = "model") -> StaticController:
    """Returns a controller that drafts a complete tree, whatever the text.

    With prompt lookup as the only source, the tree has only the nodes that lookup finds.

    Args:
        branch: children of every node [nodes].
        depth: levels below the root [tokens].
        node_budget: most nodes verified, and most expanded in a level; of a larger tree the likeliest are kept [nodes].
        source: who proposes nodes, see `TreeParameters`.
    """
    tree = uniform_tree(branch, depth, frontier_width=node_budget, node_budget=node_budget, source=source)
    return StaticController(tree)


@dataclass(eq=False)
class HistoryController(Rule):
    """Phase 3: moves Phase 2's base depth and high-confidence threshold by the recent acceptance rate.

    Above `target + band` trees get deeper and the threshold falls, below `target - band` the reverse. The rate of a
    round is the accepted share of the tree's *depth*. At most one node of a level can be right, so the accepted share
    of all nodes would measure the tree's width. For a chain the two shares are equal.

    Args:
        adjust: ``"round"`` adjusts after every round and starts anew with every request. ``"request"`` adjusts between
            requests by the rates of the last ones; a request's last round is not counted, as no choice follows it.
        target: acceptance rate aimed at.
        band: greatest difference from the target that changes nothing.
        window: observations that the rate is averaged over [rounds or requests].
        patience: observations needed before the first adjustment [rounds or requests].
        depth_step: step of the base depth, within `DEPTH_RANGE` [tokens].
        threshold_step: step of the high-confidence threshold, within `THRESHOLD_RANGE` [probability].
        source: who proposes nodes, see `TreeParameters`.

    Raises:
        ParameterError: an unknown `adjust` or `source`, a window smaller than `patience`, or another value out of its
            range.
    """

    adjust: Literal["round", "request"] = "round"
    _: KW_ONLY
    target: float = 0.7
    band: float = 0.1
    window: int = 10
    patience: int = 5
    depth_step: int = 1
    threshold_step: float = 0.05
    source: Source = "model"

    def __post_init__(self) -> None:
        if self.adjust not in ("round", "request"):
            raise ParameterError(f"adjust must be 'round' or 'request'; got {self.adjust!r}.")
        if not 1 <= self.patience <= self.window:
            raise ParameterError(f"patience must be within 1 and window; got {self.patience} and {self.window}.")
        if not (0 <= self.target <= 1 and 0 <= self.band <= 1):
            raise ParameterError(f"target and band must be within 0 and 1; got {self.target} and {self.band}.")
        if not (self.depth_step >= 0 and 0 <= self.threshold_step <= 1):
            steps = f"{self.depth_step} and {self.threshold_step}"
            raise ParameterError(f"depth_step must be 0 or more and threshold_step within 0 and 1; got {steps}.")
        self.parameters = self.start = replace(PHASE_2, source=self.source)
        self.rates: deque[float] = deque(maxlen=self.window)
        self.accepted = self.possible = 0  # levels of this request's trees

    def reset(self) -> None:
        """Starts anew by round; by request, counts the request that ended."""
        if self.adjust == "round":
            self.parameters = self.start
            self.rates.clear()
        elif self.possible:
            self._observe(self.accepted / self.possible)
        self.accepted = self.possible = 0

    def act(self, observation: Observation) -> TreeParameters:
        """Counts the last round and returns the parameters of the next one."""
        self.accepted += observation.last_accepted
        self.possible += observation.last_depth
        if self.adjust == "round" and observation.last_depth > 0:
            self._observe(observation.last_accepted / observation.last_depth)
        return self.parameters

    def _observe(self, rate: float) -> None:
        self.rates.append(rate)
        if len(self.rates) < self.patience:
            return
        excess = round(sum(self.rates) / len(self.rates) - self.target, 9)  # 0.8 - 0.7 is within a band of 0.1
        if abs(excess) <= self.band:
            return
        direction = 1 if excess > 0 else -1  # 1 for deeper trees and a lower threshold
        (least_depth, most_depth), (least, most) = DEPTH_RANGE, THRESHOLD_RANGE
        depth = min(max(self.parameters.base_depth + direction * self.depth_step, least_depth), most_depth)
        threshold = min(max(self.parameters.high_confidence - direction * self.threshold_step, least), most)
        self.parameters = replace(
            self.parameters,
            base_depth=depth,
            max_depth=max(self.start.max_depth, depth),
            high_confidence=round(threshold, 6),  # steps of 0.05 stay on their grid
        )

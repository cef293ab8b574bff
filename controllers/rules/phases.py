"""The plan's three phases and the fixed tree.

Phases 1 and 2 adapt inside a round, node by node: the growth rule (`specgym.env.tree.growth`) applies their thresholds.
Phase 3 adapts between rounds: it moves Phase 2's thresholds by the recent acceptance rate.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Literal

from specgym.env.common.errors import ParameterError
from specgym.env.tree.observation import Observation
from specgym.env.tree.parameters import Source, TreeParameters

PHASE_1 = TreeParameters(
    base_depth=4,
    max_depth=4,
    min_branch=1,
    mid_branch=2,
    max_branch=4,
    high_confidence=0.8,
    low_confidence=0.3,
)
"""The surer the draft is at a node, the fewer children the node gets; every branch is equally deep."""

PHASE_2 = TreeParameters(
    base_depth=4,
    max_depth=8,
    min_branch=1,
    mid_branch=2,
    max_branch=4,
    high_confidence=0.8,
    low_confidence=0.3,
    early_stop=0.1,
    deep_expand=0.7,
)
"""Phase 1, and unlikely branches stop early while very likely ones go on past the base depth."""


class StaticController:
    """The same parameters for every round.

    Args:
        parameters: those parameters.
    """

    observes_draft = False

    def __init__(self, parameters: TreeParameters) -> None:
        self.parameters = parameters

    def reset(self) -> None:
        """Nothing is remembered."""

    def act(self, observation: Observation) -> TreeParameters:
        """The parameters."""
        return self.parameters


def fixed_tree(branch: int = 2, depth: int = 4, node_budget: int = 128, source: Source = "model") -> StaticController:
    """A complete tree whatever the text: `branch` children under every node, `depth` levels.

    Where prompt lookup alone is asked, what it does not find is missing.

    Args:
        branch: children of every node [nodes].
        depth: levels below the root [tokens].
        node_budget: most nodes verified, and most expanded in a level; of a larger tree the likeliest are kept [nodes].
        source: who proposes nodes, see `TreeParameters`.
    """
    return StaticController(
        TreeParameters(
            base_depth=depth,
            max_depth=depth,
            min_branch=branch,
            mid_branch=branch,
            max_branch=branch,
            frontier_width=node_budget,
            node_budget=node_budget,
            source=source,
        )
    )


_DEPTHS = (2, 10)
_THRESHOLDS = (0.5, 0.95)


class HistoryController:
    """Adjusts Phase 2's base depth and high-confidence threshold to the recent acceptance rate.

    The rate of a round is the accepted share of the tree's *depth*: of the nodes beside each other at one depth at
    most one can be right, so the accepted share of all nodes says how wide a tree was rather than how well it did.
    For a chain the two are the same.

    Args:
        adjust: ``"round"``: after every round, forgetting all at the end of a request; ``"request"``: once a request,
            by the rates of the last requests, which are remembered. A request's last round is not in its rate: nothing
            is chosen after it.
        target: acceptance rate aimed at.
        band: how far the rate may be off before anything is done.
        window: observations that the rate is averaged over [rounds or requests].
        patience: observations needed before the first adjustment [rounds or requests].
        depth_step: step of the base depth, which stays within 2 and 10 [tokens].
        threshold_step: step of the high-confidence threshold, which stays within 0.5 and 0.95 [probability].
        source: who proposes nodes, see `TreeParameters`.

    Raises:
        ParameterError: an unknown `adjust` or `source`, a window smaller than `patience`, or another value out of its
            range.
    """

    observes_draft = False

    def __init__(
        self,
        adjust: Literal["round", "request"] = "round",
        *,
        target: float = 0.7,
        band: float = 0.1,
        window: int = 10,
        patience: int = 5,
        depth_step: int = 1,
        threshold_step: float = 0.05,
        source: Source = "model",
    ) -> None:
        if adjust not in ("round", "request"):
            raise ParameterError(f"adjust must be 'round' or 'request'; got {adjust!r}.")
        if not 1 <= patience <= window:
            raise ParameterError(f"patience must be within 1 and window; got {patience} and {window}.")
        if not (0 <= target <= 1 and 0 <= band <= 1):
            raise ParameterError(f"target and band must be within 0 and 1; got {target} and {band}.")
        if not (depth_step >= 0 and 0 <= threshold_step <= 1):
            raise ParameterError(
                "depth_step must be 0 or more and threshold_step within 0 and 1; "
                f"got {depth_step} and {threshold_step}."
            )
        self.adjust, self.target, self.band, self.patience = adjust, target, band, patience
        self.depth_step, self.threshold_step = depth_step, threshold_step
        self.start = dataclasses.replace(PHASE_2, source=source)
        self.parameters = self.start
        self.rates: deque[float] = deque(maxlen=window)
        self.request: list[tuple[int, int]] = []  # accepted and possible of each round of this request

    def reset(self) -> None:
        """Per round: starts anew. Per request: takes the finished request into account."""
        if self.adjust == "round":
            self.parameters = self.start
            self.rates.clear()
        elif self.request:
            accepted, possible = (sum(column) for column in zip(*self.request, strict=True))
            self._observe(accepted / possible)
        self.request = []

    def act(self, observation: Observation) -> TreeParameters:
        """Takes the last round into account and chooses."""
        if observation.last_depth > 0:
            if self.adjust == "round":
                self._observe(observation.last_accepted / observation.last_depth)
            else:
                self.request.append((observation.last_accepted, observation.last_depth))
        return self.parameters

    def _observe(self, rate: float) -> None:
        self.rates.append(rate)
        if len(self.rates) < self.patience:
            return
        excess = round(sum(self.rates) / len(self.rates) - self.target, 9)  # 0.8 - 0.7 is within a band of 0.1
        if abs(excess) > self.band:
            self._step(1 if excess > 0 else -1)

    def _step(self, boldness: int) -> None:
        depth = _clamp(self.parameters.base_depth + boldness * self.depth_step, *_DEPTHS)
        threshold = _clamp(self.parameters.high_confidence - boldness * self.threshold_step, *_THRESHOLDS)
        self.parameters = dataclasses.replace(
            self.parameters,
            base_depth=int(depth),
            max_depth=max(self.start.max_depth, int(depth)),
            high_confidence=round(threshold, 6),  # steps of 0.05 stay on their grid
        )


def _clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)

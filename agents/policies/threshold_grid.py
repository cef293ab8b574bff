"""The trees of `goodput` by number, and the thresholds that follow from the costs of a machine.

Goodput verifies a node if its reach exceeds what a row costs. It drafts a level if the reach that the level expands
exceeds what a level and its rows cost. Both costs are converted to tokens by a price of time. Here both thresholds are
values of a short scale, so that replay can tabulate every outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy.typing as npt

from specgym.controllers.rules.goodput import CAPTURE, goodput_tree
from specgym.controllers.rules.trees import DEPTH, MIN_REACH
from specgym.env.gym.features import Number
from specgym.env.gym.grid import ActionSpace, ParameterGrid, checked_record
from specgym.env.tree.parameters import PLAIN, SOURCES, Source, TreeParameters

# Fitted to goodput's own price of time on the shipped trace, on all shipped machines.
_FREE_ROW_GAIN = (2.0, 0.95)  # gain of speculation where rows cost nothing, greedy and sampled [tokens per plain step]
_HALF_GAIN_ROW = 1 / 15  # cost of a row at which speculation gains half as much [plain steps]

# What "specgym policy 1" calls the fields.
_SAVED = {"depth": "base_depth", "min_level_reach": "high_confidence", "min_reach": "early_stop", "node_budget": "most"}


def default_time_price(row_cost: Number, sampling: Number) -> Number:
    """Returns the price of time that a machine's costs suggest, for one machine or for many.

    Args:
        row_cost: cost of a row [plain steps].
        sampling: 1 where tokens are sampled, 0 where they are greedy.

    Returns:
        Tokens per plain step.
    """
    return 1 + interpolate(_FREE_ROW_GAIN, sampling) / (1 + row_cost / _HALF_GAIN_ROW)


def interpolate(ends: tuple[float, float], share: Number) -> Number:
    """Returns the first of two values where `share` is 0, the second where it is 1."""
    return ends[0] + (ends[1] - ends[0]) * share


@dataclass(frozen=True)
class ThresholdGrid(ActionSpace):
    """Goodput's trees: every node has four children, and two thresholds decide which nodes and levels pay.

    Raises:
        ParameterError: see `ActionSpace`.
    """

    dimensions = ("depth", "min_level_reach", "min_reach", "source")

    depth: tuple[int, ...] = (0, DEPTH)
    """depths that trees may have; 0 is plain decoding [tokens]"""
    min_level_reach: tuple[float, ...] = (0.0, 0.15, 0.22, 0.3, 0.4, 0.52, 0.68, 0.85, 1.0)
    """least summed reach that a level must expand to be drafted, ignored for prompt lookup [tokens]"""
    min_reach: tuple[float, ...] = (0.0, 0.03, 0.045, 0.06, 0.08, 0.11, 0.15, 0.2, 0.28, 0.38, 0.5, 0.65)
    """least reach of a node that is verified [probability]"""
    source: tuple[Source, ...] = SOURCES
    """who proposes nodes"""
    floor: float = MIN_REACH
    """reach under which no node is expanded, whatever it would cost [probability]"""
    node_budget: int = 31
    """most nodes verified [nodes]"""
    capture: float = CAPTURE
    """share of the reach of expanded nodes that their children are expected to have, see `GoodputController`"""

    def parameters(self, action: npt.ArrayLike) -> TreeParameters:
        """See `ActionSpace.parameters`."""
        depth, min_level_reach, min_reach, source = self._values(action)
        if depth == 0:
            return PLAIN
        return goodput_tree(
            source,
            min_reach,
            min_level_reach,
            depth=depth,
            node_budget=self.node_budget,
            capture=self.capture,
            early_stop=self.floor,
        )

    def covered(self, rule: Mapping[str, Any]) -> ThresholdGrid:
        """See `ActionSpace.covered`."""
        max_depth, floor = int(rule["max_depth"]), float(rule["floor"])
        depth = tuple(dict.fromkeys(min(depth, max_depth) for depth in self.depth))
        return replace(self, depth=depth, floor=max(self.floor, floor))

    def to_dict(self) -> dict[str, Any]:
        """See `ActionSpace.to_dict`. The names are those of the policy format, which began as `ParameterGrid`'s."""
        record = {_SAVED.get(name, name): value for name, value in super().to_dict().items()}
        return ParameterGrid(deep=(False,), branch=(0,)).to_dict() | record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ThresholdGrid:
        """Returns the grid of a record made by `to_dict`. Raises as `ParameterGrid.from_dict`."""
        values = checked_record(record, cls().to_dict(), "grid")
        own = {field.name: values[_SAVED.get(field.name, field.name)] for field in fields(cls)}
        return cls(**own | {name: tuple(own[name]) for name in cls.dimensions})

"""Corrections of goodput: a policy says how much dearer or cheaper a row and a level shall be than the costs say.

Goodput verifies a node if its reach exceeds what a row costs, and drafts a level if the reach that it expands exceeds
what a level and its rows cost, both at a price of time. Here both thresholds stand on a short scale, so that replay can
tabulate what they bring, and a policy moves them by some steps from where the machine's costs put them. So it never has
to learn what a machine is: a policy that moves nothing is goodput at a price that follows from the machine's costs, on
machines that it has never seen too.
"""

from __future__ import annotations

import functools
import itertools
from bisect import bisect_left
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from specgym.controllers.rules.goodput import CAPTURE
from specgym.controllers.rules.shapes import DEEPEST, FLOOR, spreading
from specgym.env.common.arrays import FloatArray, IntArray
from specgym.env.common.errors import ParameterError
from specgym.env.gym.features import FEATURES, LEVEL_HALF, ROW_HALF, FeatureVector, unsaturate, unsaturate_number
from specgym.env.gym.grid import DIMENSIONS, ParameterGrid
from specgym.env.replay.traces.records import TraceHeader
from specgym.env.tree.observation import LEVEL_PRIOR, ROW_PRIOR
from specgym.env.tree.parameters import PLAIN, Source, TreeParameters

Costs = TypeVar("Costs", float, FloatArray)

CORRECTIONS = "corrections"
"""the name of this form of action"""

# About what goodput comes to on the shipped trace, on all shipped machines.
_GAINS = (2.0, 0.95)  # what speculation brings where rows cost nothing, greedy and sampling [tokens per plain step]
_DEAR_ROW = 1 / 15  # cost of a row at which it brings half as much [plain steps]
_FIRST = (0.797, 0.577)  # how often the draft's first child is accepted there, greedy and sampling [probability]
# Of the two machines with the dearest rows, 0.092 to 0.096 leave the draft to the one that gains by it when sampling.
_BESIDES = 0.094  # what it costs besides to ask the draft: the round's overhead, and rows that it owes [plain steps]
_LEVEL, _ROW, _SAMPLING = (
    next(column for column, feature in enumerate(FEATURES) if feature.name == name)
    for name in ("level_cost", "row_cost", "sampling")
)
_ROW_STEPS, _LEVEL_STEPS = range(-3, 5), range(-2, 4)
_SOURCES: tuple[Source, ...] = ("model", "both")
# Who proposes nodes (None: plain decoding), and by how many steps rows and levels are dearer. Lookup's levels are free.
_CHOICES: tuple[tuple[Source | None, int, int], ...] = (
    (None, 0, 0),
    *(("lookup", row, 0) for row in _ROW_STEPS),
    *itertools.product(_SOURCES, _ROW_STEPS, _LEVEL_STEPS),
)


def base_price(row: Costs, sampling: Costs) -> Costs:
    """What a plain step is taken to be worth where nothing is corrected, on one machine or on many.

    Args:
        row: cost of a row [plain steps].
        sampling: 1 where tokens are sampled, 0 where the likeliest one is always taken.

    Returns:
        Tokens per plain step.
    """
    return 1 + _between(_GAINS, sampling) / (1 + row / _DEAR_ROW)


def _between(ends: tuple[float, float], sampling: Costs) -> Costs:
    """The first of two values where `sampling` is 0, the second where it is 1."""
    return ends[0] + (ends[1] - ends[0]) * sampling


@dataclass(frozen=True)
class PriceGrid(ParameterGrid):
    """Goodput's trees by number. Every node has four children, so no confidence is asked for: `high_confidence` holds
    the least reach that a level must expand, `early_stop` the least reach of a node. Raises as `ParameterGrid` does.
    """

    base_depth: tuple[int, ...] = (0, DEEPEST)
    """0 is plain decoding, the other one how deep trees may be [tokens]"""
    high_confidence: tuple[float, ...] = (0.0, 0.15, 0.22, 0.3, 0.4, 0.52, 0.68, 0.85, 1.0)
    """`min_level_reach` [tokens]"""
    early_stop: tuple[float, ...] = (0.0, 0.03, 0.045, 0.06, 0.08, 0.11, 0.15, 0.2, 0.28, 0.38, 0.5, 0.65)
    """`min_reach` [probability]"""
    deep: tuple[bool, ...] = (False,)
    branch: tuple[int, ...] = (0,)
    floor: float = FLOOR
    """reach under which no node is expanded, whatever it would cost [probability]"""
    most: int = 31
    """`node_budget` [nodes]"""
    capture: float = CAPTURE
    """see `GoodputController`"""

    def parameters(self, action: npt.ArrayLike) -> TreeParameters:
        """See `ParameterGrid.parameters`."""
        depth, level, row, _, source, _ = self._values(action)
        if depth == 0:
            return PLAIN
        alone = source == "lookup"  # a chain that rates itself, and whose levels are free
        return spreading(
            depth,
            self.most,
            source,
            early_stop=max(self.floor, row if alone else min(row / self.capture, 1.0)),
            min_reach=row,
            min_level_reach=0.0 if alone else level,
        )


def covered_prices(header: TraceHeader) -> PriceGrid:
    """The grid as far as a trace by such a rule answers every action of it."""
    depth = min(DEEPEST, int(header.rule["max_depth"]))
    return PriceGrid(base_depth=(0, depth), floor=max(FLOOR, float(header.rule["floor"])))


class Corrections:
    """From a policy's choices and what is observed to actions of a `PriceGrid`; a form as `ActionForm` describes it.

    What was done before binds no one. The machine's costs are known here, whatever a policy is shown.

    Args:
        grid: the actions.

    Attributes:
        unmoved: the choices that correct nothing.

    Raises:
        ParameterError: a grid of another kind.
    """

    nvec: IntArray = np.array([len(_CHOICES)])
    """one head, for all that may be chosen together"""
    unmoved: IntArray = np.array([_CHOICES.index(("both", 0, 0))])
    entries: tuple[str, ...] = ()

    def __init__(self, grid: ParameterGrid) -> None:
        if not isinstance(grid, PriceGrid):
            raise ParameterError(f"Corrections choose from a PriceGrid; got a {type(grid).__name__}.")
        self.grid: PriceGrid = grid
        self.first = np.zeros(len(DIMENSIONS), np.int64)
        self._levels, self._rows = _ends(grid.high_confidence), _ends(grid.early_stop)
        self._level_ends, self._row_ends = self._levels.tolist(), self._rows.tolist()
        self._actions = _actions(grid)

    def shown(self, current: IntArray) -> FeatureVector:
        """Nothing: what was chosen before binds no one."""
        return np.empty((*current.shape[:-1], 0), np.float32)

    def move(self, current: IntArray, choices: IntArray, seen: FeatureVector) -> IntArray:
        """See `ActionForm.move`."""
        if seen.ndim == 1:
            return self._move_one(int(choices[0]), seen)
        level, row = unsaturate(seen[..., _LEVEL], LEVEL_HALF), unsaturate(seen[..., _ROW], ROW_HALF)
        unknown = (level == 0) & (row == 0)  # a machine that tells neither, as in goodput
        if unknown.any():
            level, row = np.where(unknown, LEVEL_PRIOR, level), np.where(unknown, ROW_PRIOR, row)
        expanded, verified, margin = self._worth(level, row, (seen[..., _SAMPLING] > 0).astype(np.float64))
        pays = (margin > 0).astype(np.int64)
        at_level, at_row = np.searchsorted(self._levels, expanded), np.searchsorted(self._rows, verified)
        found: IntArray = self._actions[pays, at_level, at_row, choices[..., 0]]
        return found

    def _move_one(self, choice: int, seen: FeatureVector) -> IntArray:
        """The same for one observation, in a fraction of the time: it is what decoding waits for."""
        level, row = unsaturate_number(seen[_LEVEL], LEVEL_HALF), unsaturate_number(seen[_ROW], ROW_HALF)
        if level == row == 0:
            level, row = LEVEL_PRIOR, ROW_PRIOR
        expanded, verified, margin = self._worth(level, row, float(seen[_SAMPLING] > 0))
        at_level, at_row = bisect_left(self._level_ends, expanded), bisect_left(self._row_ends, verified)
        found: IntArray = self._actions[int(margin > 0), at_level, at_row, choice]
        return found

    def _worth(self, level: Costs, row: Costs, sampling: Costs) -> tuple[Costs, Costs, Costs]:
        """Reach that pays for a level if it is expanded, and for a row if it is verified, and by how much the draft's
        first child pays for all that asking the draft costs; of one machine or of many.
        """
        price = base_price(row, sampling)
        margin = _between(_FIRST, sampling) - price * (level + row + _BESIDES)
        return price * (level + row) / self.grid.capture, price * row, margin


@functools.cache
def _actions(grid: PriceGrid) -> IntArray:
    """Actions by whether the draft model can pay, by the values that the machine's costs of a level and of a row are
    nearest to, and by choice. Where the draft model cannot pay, prompt lookup stands for it.
    """
    levels, rows = len(grid.high_confidence), len(grid.early_stop)
    table = np.zeros((2, levels, rows, len(_CHOICES), len(DIMENSIONS)), np.int64)
    for pays, level, row, (number, (source, dearer_row, dearer_level)) in itertools.product(
        range(2), range(levels), range(rows), enumerate(_CHOICES)
    ):
        if source is not None:
            action = dict.fromkeys(DIMENSIONS, 0) | {
                "base_depth": 1,
                "high_confidence": min(max(level + dearer_level, 0), levels - 1),
                "early_stop": min(max(row + dearer_row, 0), rows - 1),
                "source": grid.source.index(source if pays else "lookup"),
            }
            table[pays, level, row, number] = list(action.values())
    table.setflags(write=False)  # it is shared
    return table


def _ends(values: tuple[float, ...]) -> FloatArray:
    """Up to where each value but the last is the nearest one by the logarithm; 0 counts as 2/3 of the least other."""
    scale = np.log([value or 2 / 3 * values[1] for value in values])
    return np.asarray(np.exp((scale[1:] + scale[:-1]) / 2))

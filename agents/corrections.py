"""Corrections of goodput: a policy says how much dearer or cheaper a row and a level shall be than the costs say.

Goodput verifies a node if its reach exceeds what a row costs, and drafts a level if the reach that it expands exceeds
what a level costs, both at a price of time. Here both thresholds stand on a short scale, so that replay can tabulate
what they bring, and a policy moves them by some steps from where the machine's costs put them. So it never has to learn
what a machine is: a policy that moves nothing is goodput at a fixed price, on machines that it has never seen too.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controllers.shapes import DEEPEST, FLOOR, spreading
from env.errors import ParameterError
from env.features import FEATURES, LEVEL_HALF, ROW_HALF, FeatureVector, squeezed
from env.grid import DIMENSIONS, ParameterGrid
from env.observation import LEVEL_PRIOR, ROW_PRIOR
from env.parameters import PLAIN, Source, TreeParameters
from env.traces.records import TraceHeader
from env.tree import FloatArray, IntArray

__all__ = ["CORRECTIONS", "PRICE", "Corrections", "PriceGrid", "covered_prices"]

CORRECTIONS = "corrections"
"""the name of this form of action"""

PRICE = 1.5
"""tokens that a plain step is taken to be worth where nothing is corrected [tokens per plain step]"""
_CAPTURE = 0.7  # share of the reach of expanded nodes that their children are expected to have, as in goodput
_LEVEL, _ROW = (
    next(column for column, feature in enumerate(FEATURES) if feature.name == name)
    for name in ("level_cost", "row_cost")
)
_ROW_STEPS, _LEVEL_STEPS = range(-2, 5), range(-2, 3)
_SOURCES: tuple[Source, ...] = ("model", "both")
# Who proposes nodes (None: plain decoding), and by how many steps rows and levels are dearer. Lookup's levels are free.
_CHOICES: tuple[tuple[Source | None, int, int], ...] = (
    (None, 0, 0),
    *(("lookup", row, 0) for row in _ROW_STEPS),
    *itertools.product(_SOURCES, _ROW_STEPS, _LEVEL_STEPS),
)


@dataclass(frozen=True)
class PriceGrid(ParameterGrid):
    """Goodput's trees by number. Every node has four children, so no confidence is asked for: `high_confidence` holds
    the least reach that a level must expand, `early_stop` the least reach of a node. Raises as `ParameterGrid` does.
    """

    base_depth: tuple[int, ...] = (0, DEEPEST)
    """0 is plain decoding, the other one how deep trees may be [tokens]"""
    high_confidence: tuple[float, ...] = (0.0, 0.12, 0.2, 0.35, 0.6, 1.0)
    """`level_price` [tokens]"""
    early_stop: tuple[float, ...] = (0.0, 0.06, 0.1, 0.18, 0.32, 0.55)
    """`min_reach` [probability]"""
    deep: tuple[bool, ...] = (False,)
    branch: tuple[int, ...] = (0,)
    floor: float = FLOOR
    """reach under which no node is expanded, whatever it would cost [probability]"""
    most: int = 31
    """`node_budget` [nodes]"""

    def parameters(self, action: npt.ArrayLike) -> TreeParameters:
        """See `ParameterGrid.parameters`."""
        depth, level, row, _, source, _ = self._values(action)
        if depth == 0:
            return PLAIN
        return spreading(
            depth,
            self.most,
            source,
            early_stop=max(self.floor, row),
            min_reach=row,
            level_price=0.0 if source == "lookup" else level,
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
        self.grid, self.first = grid, np.zeros(len(DIMENSIONS), np.int64)
        self._levels = _ends(grid.high_confidence, PRICE / _CAPTURE, LEVEL_HALF)
        self._rows = _ends(grid.early_stop, PRICE, ROW_HALF)
        self._unknown = (
            int(np.searchsorted(self._levels, squeezed(LEVEL_PRIOR, LEVEL_HALF))),
            int(np.searchsorted(self._rows, squeezed(ROW_PRIOR, ROW_HALF))),
        )
        self._actions = _actions(grid)

    def shown(self, current: IntArray) -> FeatureVector:
        """Nothing: what was chosen before binds no one."""
        return np.empty((*current.shape[:-1], 0), np.float32)

    def move(self, current: IntArray, choices: IntArray, seen: FeatureVector) -> IntArray:
        """See `ActionForm.move`."""
        level, row = seen[..., _LEVEL], seen[..., _ROW]
        at_level, at_row = np.searchsorted(self._levels, level), np.searchsorted(self._rows, row)
        unknown = (level == 0) & (row == 0)  # a machine that tells neither, as in goodput
        if unknown.any():
            at_level, at_row = (
                np.where(unknown, self._unknown[0], at_level),
                np.where(unknown, self._unknown[1], at_row),
            )
        found: IntArray = self._actions[at_level, at_row, choices[..., 0]]
        return found


def _actions(grid: PriceGrid) -> IntArray:
    """Actions by the values that the machine's costs of a level and of a row are nearest to, and by choice."""
    levels, rows = len(grid.high_confidence), len(grid.early_stop)
    table = np.zeros((levels, rows, len(_CHOICES), len(DIMENSIONS)), np.int64)
    for level, row, (number, (source, dearer_row, dearer_level)) in itertools.product(
        range(levels), range(rows), enumerate(_CHOICES)
    ):
        if source is not None:
            action = dict.fromkeys(DIMENSIONS, 0) | {
                "base_depth": 1,
                "high_confidence": min(max(level + dearer_level, 0), levels - 1),
                "early_stop": min(max(row + dearer_row, 0), rows - 1),
                "source": grid.source.index(source),
            }
            table[level, row, number] = list(action.values())
    return table


def _ends(values: tuple[float, ...], price: float, half: float) -> FloatArray:
    """Up to which cost, as observations squeeze it, each value but the last is the nearest to `price` times the cost.

    Near is by the logarithm; 0 counts as two thirds of the least other value.
    """
    scale = np.log([value or 2 / 3 * values[1] for value in values])
    ends = np.exp((scale[1:] + scale[:-1]) / 2) / price
    return np.array([squeezed(float(end), half) for end in ends])

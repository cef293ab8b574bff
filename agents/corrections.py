"""Corrections of goodput: a policy says how much dearer or cheaper a row and a level shall be than the costs say.

Goodput verifies a node if its reach exceeds what a row costs, and drafts a level if the reach that it expands exceeds
what a level costs, both at a price of time. Here both thresholds stand on a short scale, so that replay can tabulate
what they bring, and a policy moves them by some steps from where the machine's costs put them. So it never has to learn
what a machine is: a policy that moves nothing is goodput at a fixed price, on machines that it has never seen too.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from controllers.shapes import DEEPEST, FLOOR, spreading
from env.errors import ParameterError
from env.features import FEATURES, FeatureVector
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
_UNKNOWN = (LEVEL_PRIOR, ROW_PRIOR)  # where the machine tells neither, as in goodput
_HALF = (0.25, 0.05)  # costs that observations squeeze to 1/2
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
_SPECULATES = np.array([source is not None for source, _, _ in _CHOICES])
_ROW_MOVES, _LEVEL_MOVES = (np.array(moves) for moves in list(zip(*_CHOICES, strict=True))[1:])


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
        self._sources = np.array([0 if source is None else grid.source.index(source) for source, _, _ in _CHOICES])

    def shown(self, current: IntArray) -> FeatureVector:
        """Nothing: what was chosen before binds no one."""
        return np.empty((*current.shape[:-1], 0), np.float32)

    def move(self, current: IntArray, choices: IntArray, seen: FeatureVector) -> IntArray:
        """See `ActionForm.move`."""
        level, row = _costs(seen)
        chosen = choices[..., 0]
        speculates = _SPECULATES[chosen]
        found = np.zeros((*np.broadcast_shapes(chosen.shape, row.shape), len(DIMENSIONS)), np.int64)
        found[..., DIMENSIONS.index("base_depth")] = speculates
        for name, price, steps in (
            ("early_stop", PRICE * row, _ROW_MOVES),
            ("high_confidence", PRICE * level / _CAPTURE, _LEVEL_MOVES),
        ):
            values = getattr(self.grid, name)
            moved = np.clip(_nearest(values, price) + steps[chosen], 0, len(values) - 1)
            found[..., DIMENSIONS.index(name)] = np.where(speculates, moved, 0)
        found[..., DIMENSIONS.index("source")] = self._sources[chosen]
        return found


def _costs(seen: FeatureVector) -> tuple[FloatArray, FloatArray]:
    """What a level and a row cost [plain steps]."""
    squeezed = np.asarray(seen[..., [_LEVEL, _ROW]], np.float64)
    costs = np.array(_HALF) * squeezed / np.maximum(1 - squeezed, 1e-6)
    costs = np.where((squeezed == 0).all(axis=-1, keepdims=True), np.array(_UNKNOWN), costs)
    return costs[..., 0], costs[..., 1]


def _nearest(values: tuple[float, ...], wanted: FloatArray) -> npt.NDArray[Any]:
    """Which value is nearest by its logarithm; 0 counts as two thirds of the least other one."""
    scale = np.log([value or 2 / 3 * values[1] for value in values])
    middles = (scale[1:] + scale[:-1]) / 2
    return np.searchsorted(middles, np.log(np.maximum(wanted, 1e-9)))

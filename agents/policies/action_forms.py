"""Forms of action: how a policy's choices become actions of a grid.

A choice is an absolute value, a step from the last action, or a correction of `goodput`'s thresholds. A form knows no
network and no environment. It handles one episode or many: arrays may have any leading axes.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, ClassVar

import numpy as np

from specgym.agents.policies.threshold_grid import ThresholdGrid, default_time_price, interpolate
from specgym.controllers.rules.phases import PHASE_2
from specgym.env.common.arrays import FloatArray, IntArray
from specgym.env.common.errors import ParameterError, UnknownNameError
from specgym.env.gym.features import FeatureVector, ObservedCosts
from specgym.env.gym.grid import ActionSpace, ParameterGrid
from specgym.env.tree.observation import LEVEL_PRIOR, ROW_PRIOR, Observation
from specgym.env.tree.parameters import Source


class ActionForm:
    """The absolute form: a head for each dimension of the grid, which chooses among all of its values.

    Args:
        grid: the action space.

    Attributes:
        nvec: number of choices of each of the policy's heads, `int64[heads]`.
        first: the action that every episode starts from, `int64[dimensions]`.
        extra_names: names of the entries that the form appends to an observation.
    """

    grid_type: type[ParameterGrid] | type[ThresholdGrid] = ParameterGrid
    extra_names: tuple[str, ...] = ()

    def __init__(self, grid: ActionSpace) -> None:
        if not isinstance(grid, self.grid_type):
            form, expected = type(self).__name__, self.grid_type.__name__
            raise ParameterError(f"Expected a {expected} for {form}; got a {type(grid).__name__}.")
        self.nvec: IntArray = grid.nvec
        self.first: IntArray = np.zeros(len(grid.nvec), np.int64)

    def extra(self, last: IntArray) -> FeatureVector:
        """Returns the entries that are appended to an observation, within 0 and 1, `float32[..., extra_names]`.

        Args:
            last: the last actions, `int64[..., dimensions]`.
        """
        return np.empty((*last.shape[:-1], 0), np.float32)

    def actions(self, last: IntArray, choices: IntArray, costs: Observation | ObservedCosts) -> IntArray:
        """Returns the actions of the rounds that begin now, `int64[..., dimensions]`.

        Args:
            last: the last actions, `int64[..., dimensions]`.
            choices: one choice for each head, `int64[..., heads]`.
            costs: the machine's costs, even where the policy does not read them: an observation, or arrays of many.
        """
        return choices


class Increments(ActionForm):
    """Phase 3's steps: base depth and high-confidence threshold go one value of the grid down, stay, or go up.

    All other parameters are Phase 2's, as near as the grid has them. An episode starts from Phase 2.
    """

    extra_names = ("current_base_depth", "current_high_confidence")
    _steered: ClassVar = [ParameterGrid.dimensions.index(name) for name in ("base_depth", "high_confidence")]

    def __init__(self, grid: ParameterGrid) -> None:
        super().__init__(grid)
        self.nvec = np.full(len(self._steered), 3)
        self.first = grid.nearest(PHASE_2)
        self._highest = (grid.nvec - 1)[self._steered]

    def extra(self, last: IntArray) -> FeatureVector:
        """Returns the position of depth and threshold between the grid's first value and its last."""
        return np.asarray(last[..., self._steered] / np.maximum(self._highest, 1), np.float32)

    def actions(self, last: IntArray, choices: IntArray, costs: Observation | ObservedCosts) -> IntArray:
        """Returns actions one step from the last ones, never past the grid's ends."""
        moved = last.copy()
        moved[..., self._steered] = np.clip(moved[..., self._steered] + choices - 1, 0, self._highest)
        return moved


_ROW_STEPS, _LEVEL_STEPS = range(-3, 5), range(-2, 4)
_SOURCES: tuple[Source, ...] = ("model", "both")
# Who proposes nodes (None: plain decoding), and by how many values the thresholds of a row and of a level are raised.
_CORRECTIONS: tuple[tuple[Source | None, int, int], ...] = (
    (None, 0, 0),
    *(("lookup", row, 0) for row in _ROW_STEPS),  # lookup's levels cost nothing
    *itertools.product(_SOURCES, _ROW_STEPS, _LEVEL_STEPS),
)
# How often the draft's first child is accepted on the shipped trace, greedy and sampled [probability].
_FIRST_CHILD = (0.797, 0.577)
# Further costs of using the draft: the round's overhead, and rows that the draft has to catch up on [plain steps]. Of
# the two machines whose rows cost most, values of 0.092 to 0.096 leave the draft to the one that gains by it sampling.
_DRAFT_OVERHEAD = 0.094


class Corrections(ActionForm):
    """Corrections of goodput: who proposes nodes, and by how many values both thresholds of a `ThresholdGrid` move.

    The thresholds start from where the machine's costs put them, so a policy never has to learn what a machine is. A
    policy that corrects nothing is goodput at `default_time_price`, on machines that it has never seen, too.

    Args:
        grid: the action space.

    Attributes:
        neutral: the choice that corrects nothing, `int64[1]`.

    Raises:
        ParameterError: a grid of another kind.
    """

    grid_type = ThresholdGrid
    neutral: IntArray = np.array([_CORRECTIONS.index(("both", 0, 0))])

    def __init__(self, grid: ThresholdGrid) -> None:
        super().__init__(grid)
        self.nvec, self.capture = np.array([len(_CORRECTIONS)]), grid.capture  # one head for all that is chosen
        self._level_bounds, self._row_bounds = _bounds(grid.min_level_reach), _bounds(grid.min_reach)
        self._table = _corrected_actions(grid)

    def actions(self, last: IntArray, choices: IntArray, costs: Observation | ObservedCosts) -> IntArray:
        """See `ActionForm.actions`. Where the draft model cannot pay, prompt lookup takes its place."""
        level, row, sampling = _known_costs(costs)
        price = default_time_price(row, sampling)
        pays = np.asarray(interpolate(_FIRST_CHILD, sampling) > price * (level + row + _DRAFT_OVERHEAD), np.int64)
        level_index = np.searchsorted(self._level_bounds, price * (level + row) / self.capture)
        row_index = np.searchsorted(self._row_bounds, price * row)
        return np.asarray(self._table[pays, level_index, row_index, choices[..., 0]])


def _known_costs(costs: Observation | ObservedCosts) -> tuple[Any, Any, Any]:
    """Returns the costs of a level and a row, or what is assumed for an unknown machine, and 1 for sampling or 0."""
    if isinstance(costs, Observation):  # plain numbers are faster than arrays, and decoding waits for them
        unknown = costs.level_cost == costs.row_cost == 0
        level, row = (LEVEL_PRIOR, ROW_PRIOR) if unknown else (costs.level_cost, costs.row_cost)
        return level, row, float(not costs.greedy)
    known, sampling = (costs.level_cost > 0) | (costs.row_cost > 0), np.where(costs.greedy, 0.0, 1.0)
    return np.where(known, costs.level_cost, LEVEL_PRIOR), np.where(known, costs.row_cost, ROW_PRIOR), sampling


@functools.cache
def _corrected_actions(grid: ThresholdGrid) -> IntArray:
    """Returns the action of every choice, `int64[2, level thresholds, row thresholds, choices, dimensions]`.

    The first index tells whether the draft model can pay, the next two which thresholds the costs suggest.
    """
    levels, rows = len(grid.min_level_reach), len(grid.min_reach)
    table = np.zeros((2, levels, rows, len(_CORRECTIONS), len(grid.dimensions)), np.int64)
    for pays, level, row, (choice, (source, row_step, level_step)) in itertools.product(
        range(2), range(levels), range(rows), enumerate(_CORRECTIONS)
    ):
        if source is not None:
            thresholds = min(max(level + level_step, 0), levels - 1), min(max(row + row_step, 0), rows - 1)
            table[pays, level, row, choice] = 1, *thresholds, grid.source.index(source if pays else "lookup")
    table.setflags(write=False)  # the cache shares it
    return table


def _bounds(values: tuple[float, ...]) -> FloatArray:
    """Returns where the nearest value by logarithm changes, `float64[values - 1]`; 0 counts as 2/3 of the next one."""
    scale = np.log([value or 2 / 3 * values[1] for value in values])
    return np.asarray(np.exp((scale[1:] + scale[:-1]) / 2))


FORMS: dict[str, type[ActionForm]] = {"absolute": ActionForm, "increments": Increments, "corrections": Corrections}
"""the forms by name"""


def make_form(name: str, grid: ActionSpace) -> ActionForm:
    """Makes the form of that name. Raises `UnknownNameError`, or `ParameterError` for another kind of grid."""
    return form_type(name)(grid)


def form_type(name: str) -> type[ActionForm]:
    """Returns the class of the form of that name. Raises `UnknownNameError`."""
    if name not in FORMS:
        raise UnknownNameError("form of action", name, FORMS)
    return FORMS[name]

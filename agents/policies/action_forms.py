"""What a policy chooses, and which action of the grid that is: absolute values, steps from the last round's, or
corrections of what goodput would do.

A form knows no network and no environment. It works on one episode and on many alike: arrays have any leading axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from specgym.agents.policies.corrections import CORRECTIONS, Corrections, PriceGrid
from specgym.controllers.rules.phases import PHASE_2
from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import UnknownNameError
from specgym.env.gym.features import FeatureVector
from specgym.env.gym.grid import DIMENSIONS, ParameterGrid


class ActionForm(Protocol):
    """From a policy's choices and what is observed to actions of a grid, with the last action as all that is
    remembered.
    """

    nvec: IntArray
    """how many choices each of the policy's heads has, `int64[heads]`"""
    entries: tuple[str, ...]
    """names of what it adds to the end of an observation"""
    first: IntArray
    """the action that an episode begins from, `int64[6]`"""

    def shown(self, current: IntArray) -> FeatureVector:
        """What is added to an observation, `float32[..., entries]`, each within 0 and 1.

        Args:
            current: the last actions, `int64[..., 6]`.
        """

    def move(self, current: IntArray, choices: IntArray, seen: FeatureVector) -> IntArray:
        """The actions of the rounds that begin now, `int64[..., 6]`.

        Args:
            current: the last actions, `int64[..., 6]`.
            choices: one for each head, `int64[..., heads]`.
            seen: the observations, in full whatever the policy is shown, `float32[..., entries]`.
        """


class Absolute:
    """A head for each dimension of the grid, which chooses its value whatever it was before.

    Args:
        grid: the actions.
    """

    entries: tuple[str, ...] = ()

    def __init__(self, grid: ParameterGrid) -> None:
        self.nvec = grid.nvec
        self.first: IntArray = np.zeros(len(DIMENSIONS), np.int64)

    def shown(self, current: IntArray) -> FeatureVector:
        """Nothing: what was chosen before binds no one."""
        return np.empty((*current.shape[:-1], 0), np.float32)

    def move(self, current: IntArray, choices: IntArray, seen: FeatureVector) -> IntArray:
        """The choices themselves."""
        return choices


class Increments:
    """Phase 3's steps: base depth and high-confidence threshold go one value of the grid down, stay, or go up.

    Everything else is Phase 2's, as near as the grid has it, and so is where an episode begins.

    Args:
        grid: the actions.
    """

    entries: tuple[str, ...] = ("current_base_depth", "current_high_confidence")
    _steered = (DIMENSIONS.index("base_depth"), DIMENSIONS.index("high_confidence"))

    def __init__(self, grid: ParameterGrid) -> None:
        self.nvec: IntArray = np.full(len(self._steered), 3)
        self.first = grid.nearest(PHASE_2)
        self._last = (grid.nvec - 1)[list(self._steered)]

    def shown(self, current: IntArray) -> FeatureVector:
        """Where depth and threshold stand between the grid's first value and its last."""
        steered = current[..., list(self._steered)]
        return np.asarray(steered / np.maximum(self._last, 1), np.float32)

    def move(self, current: IntArray, choices: IntArray, seen: FeatureVector) -> IntArray:
        """One step from `current`, and none past the grid's ends."""
        moved, steered = current.copy(), list(self._steered)
        moved[..., steered] = np.clip(moved[..., steered] + choices - 1, 0, self._last)
        return moved


FORMS: dict[str, type[Absolute] | type[Increments] | type[Corrections]] = {
    "absolute": Absolute,
    "increments": Increments,
    CORRECTIONS: Corrections,
}
"""the forms by name"""


def make_form(name: str, grid: ParameterGrid) -> ActionForm:
    """The form of that name on a grid. Raises `UnknownNameError`, or `ParameterError` for a grid of another kind."""
    if name not in FORMS:
        raise UnknownNameError("form of action", name, FORMS)
    return FORMS[name](grid)


def grid_of(name: str, record: Mapping[str, Any]) -> ParameterGrid:
    """The grid that `to_dict` described, of the kind that the form needs. Raises as `ParameterGrid.from_dict`."""
    return (PriceGrid if name == CORRECTIONS else ParameterGrid).from_dict(record)

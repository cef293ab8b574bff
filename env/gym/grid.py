"""The parameter grid: a policy's discrete action, and the tree parameters that it stands for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import ParameterError, UnknownNameError
from specgym.env.tree.parameters import PLAIN, SOURCES, STOPS, Source, TreeParameters

DIMENSIONS = ("base_depth", "high_confidence", "early_stop", "deep", "source", "branch")
"""what each number of an action chooses, in order"""

_PHASE_2 = TreeParameters(base_depth=4, max_depth=8, early_stop=0.1, deep_expand=0.7)


@dataclass(frozen=True)
class ParameterGrid:
    """Tree parameters by number: an action holds one index for each of `DIMENSIONS`.

    Every rule-based choice is on the default grid: plain decoding, fixed binary trees, Phases 1 and 2, and all that
    Phase 3 can step to. Some actions mean the same: of those that do not speculate all but the depth is ignored, and
    where every node has equally many children, confidence is.

    Raises:
        ParameterError: a dimension without values, with a value twice, or with one that tree parameters cannot take.
    """

    base_depth: tuple[int, ...] = tuple(range(11))
    """depths that every branch may grow to; 0 is plain decoding [tokens]"""
    high_confidence: tuple[float, ...] = tuple(round(0.5 + step / 20, 2) for step in range(10))
    """confidences over which a node gets fewest children [probability]"""
    early_stop: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
    """reaches under which a node is not expanded [probability]"""
    deep: tuple[bool, ...] = (False, True)
    """whether branches of reach over `base.deep_expand` go on past the base depth, to `base.max_depth`"""
    source: tuple[Source, ...] = SOURCES
    """who proposes nodes"""
    branch: tuple[int, ...] = (0, 2)
    """children of every node; 0 goes by confidence, between `base.min_branch` and `base.max_branch` [nodes]"""
    base: TreeParameters = _PHASE_2
    """where everything else comes from, and `high_confidence` where it is ignored: Phase 2"""
    complete_budget: int = 128
    """`node_budget` and `frontier_width` where every node has equally many children; otherwise they are the base's
    [nodes]"""

    def __post_init__(self) -> None:
        for name in DIMENSIONS:
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ParameterError(f"A grid needs one or more values of {name}, each once; got {values}.")
        deepest = np.array([int(np.argmax(self.base_depth)), 0, 0, 0, 0, 0])
        deepest[-1] = self.branch.index(0) if 0 in self.branch else 0  # where nothing is ignored
        for axis, size in enumerate(self.nvec):  # no value is invalid only beside another dimension's
            for index in range(size):
                action = deepest.copy()
                action[axis] = index
                self.parameters(action)

    @property
    def nvec(self) -> IntArray:
        """Values of each dimension, `int64[6]`."""
        return np.array([len(getattr(self, name)) for name in DIMENSIONS], np.int64)

    @property
    def strides(self) -> IntArray:
        """How far apart actions are, by number, that are one value apart, `int64[6]`: `action @ strides` is `flat`."""
        return np.append(np.cumprod(self.nvec[:0:-1])[::-1], 1)

    @property
    def deepest(self) -> int:
        """Depth that trees of any action may have [tokens]."""
        return max(*self.base_depth, self.base.max_depth if True in self.deep else 0)

    @property
    def size(self) -> int:
        """Actions, those that mean the same included."""
        return int(self.nvec.prod())

    def __iter__(self) -> Iterator[TreeParameters]:
        """Every set of parameters once, in the order of `flat`."""
        seen = dict.fromkeys(self.parameters(self.unflat(index)) for index in range(self.size))
        return iter(seen)

    def parameters(self, action: npt.ArrayLike) -> TreeParameters:
        """The tree parameters that an action stands for.

        Args:
            action: an index for each of `DIMENSIONS`, `int[6]`.

        Raises:
            ParameterError: an action that is not on the grid.
        """
        depth, confidence, stop, deep, source, branch = self._values(action)
        if depth == 0:
            return PLAIN
        changes: dict[str, Any] = {
            "base_depth": depth,
            "max_depth": max(self.base.max_depth, depth) if deep else depth,
            "deep_expand": self.base.deep_expand if deep else 1.0,
            "early_stop": stop,
            "source": source,
        }
        if branch:
            changes |= dict.fromkeys(("min_branch", "mid_branch", "max_branch"), branch)
            changes |= dict.fromkeys(("node_budget", "frontier_width"), self.complete_budget)
        else:
            changes["high_confidence"] = confidence
        return dataclasses.replace(self.base, **changes)

    def index(self, parameters: TreeParameters) -> IntArray:
        """The action that stands for these parameters, of several the first, `int64[6]`.

        Whatever does not speculate is plain decoding.

        Raises:
            ParameterError: they are not on the grid; the message says by which fields.
        """
        action = self.nearest(parameters)
        found = self.parameters(action)
        if found != parameters and (found.speculates or parameters.speculates):
            different = [
                f"{field.name}={getattr(parameters, field.name)} (nearest: {getattr(found, field.name)})"
                for field in dataclasses.fields(parameters)
                if getattr(parameters, field.name) != getattr(found, field.name)
            ]
            raise ParameterError(
                f"These tree parameters are not on the grid: {', '.join(different)}. Take those of "
                "nearest(parameters), or make a grid that has them."
            )
        return action

    def nearest(self, parameters: TreeParameters) -> IntArray:
        """The action whose parameters are nearest to these, field by field, `int64[6]`."""
        if not parameters.speculates and 0 in self.base_depth:
            return np.array([self.base_depth.index(0), 0, 0, 0, 0, 0])
        even = parameters.min_branch == parameters.max_branch and parameters.max_branch in self.branch
        branch = parameters.max_branch if even or 0 not in self.branch else 0
        deep = parameters.max_depth > parameters.base_depth or parameters.deep_expand < 1
        speculating = [depth or np.inf for depth in self.base_depth] if parameters.speculates else self.base_depth
        return np.array(
            [
                _nearest(speculating, parameters.base_depth),
                0 if even else _nearest(self.high_confidence, parameters.high_confidence),
                _nearest(self.early_stop, parameters.early_stop),
                _nearest(self.deep, deep),
                self.source.index(parameters.source) if parameters.source in self.source else 0,
                _nearest(self.branch, branch),
            ]
        )

    def flat(self, action: npt.ArrayLike) -> int:
        """The number of an action, from 0 to `size` - 1; the last dimension counts fastest. Raises `ParameterError`."""
        return int(np.ravel_multi_index(tuple(self._checked(action)), tuple(self.nvec)))

    def unflat(self, index: int) -> IntArray:
        """The action of a number, `int64[6]`. Raises `ParameterError`."""
        if not 0 <= index < self.size:
            raise ParameterError(f"Expected the number of an action, within 0 and {self.size - 1}; got {index}.")
        return np.array(np.unravel_index(index, tuple(self.nvec)), np.int64)

    def to_dict(self) -> dict[str, Any]:
        """The grid as JSON can hold it."""
        return {
            field.name: list(value) if isinstance(value := getattr(self, field.name), tuple) else value
            for field in dataclasses.fields(self)
        } | {"base": self.base.record()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ParameterGrid:
        """The grid that `to_dict` described.

        Raises:
            UnknownNameError: an entry that no grid has.
            ParameterError: an entry is missing, or has a value that a grid cannot take.
        """
        values = _checked_entries(cls, record, "grid")
        try:
            base = _checked_entries(TreeParameters, STOPS | record["base"], "base of a grid")
            values["base"] = TreeParameters(**base)
            return cls(**values | {name: tuple(values[name]) for name in DIMENSIONS})
        except TypeError as error:
            raise ParameterError(
                f"Expected a grid as to_dict() gives it; got a value of another type: {error}."
            ) from error

    def table(self) -> str:
        """The dimensions as a Markdown table."""
        lines = ["| index | name | values |", "|---|---|---|"]
        for index, name in enumerate(DIMENSIONS):
            lines.append(f"| {index} | `{name}` | {', '.join(map(str, getattr(self, name)))} |")
        return "\n".join(lines)

    def _checked(self, action: npt.ArrayLike) -> IntArray:
        numbers = np.asarray(action)
        if numbers.shape != (len(DIMENSIONS),) or not np.issubdtype(numbers.dtype, np.integer):
            raise ParameterError(
                f"Expected an action of {len(DIMENSIONS)} integers ({', '.join(DIMENSIONS)}); "
                f"got {numbers.dtype} of shape {numbers.shape}."
            )
        for name, number, size in zip(DIMENSIONS, numbers.tolist(), self.nvec.tolist(), strict=True):
            if not 0 <= number < size:
                raise ParameterError(f"Expected an index of {name} within 0 and {size - 1}; got {number}.")
        return numbers.astype(np.int64)

    def _values(self, action: npt.ArrayLike) -> list[Any]:
        numbers = self._checked(action).tolist()
        return [getattr(self, name)[number] for name, number in zip(DIMENSIONS, numbers, strict=True)]


def _nearest(values: Sequence[float], wanted: float) -> int:
    return int(np.argmin(np.abs(np.asarray(values, np.float64) - wanted)))


def _checked_entries(kind: type, record: Mapping[str, Any], what: str) -> dict[str, Any]:
    """A copy of `record`, which must have exactly the fields of the dataclass `kind`."""
    names = [field.name for field in dataclasses.fields(kind)]
    for name in record:
        if name not in names:
            raise UnknownNameError(f"entry of a {what}", name, names)
    missing = [name for name in names if name not in record]
    if missing:
        raise ParameterError(f"Expected a {what} with {', '.join(names)}; got none of {', '.join(missing)}.")
    return dict(record)

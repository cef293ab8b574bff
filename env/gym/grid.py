"""Action spaces: a policy's discrete action, and the tree parameters that it stands for."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import ParameterError, UnknownNameError
from specgym.env.tree.parameters import PLAIN, SOURCES, STOPS, Source, TreeParameters

_PHASE_2 = TreeParameters(base_depth=4, max_depth=8, early_stop=0.1, deep_expand=0.7)


class ActionSpace(ABC):
    """Tree parameters by number: an action holds one index for each dimension, `int[dimensions]`.

    A space is a frozen dataclass. Each of its `dimensions` names a field that holds the values to choose from. The
    first dimension is the depth.

    Raises:
        ParameterError: a dimension has no values, a value twice, or one that tree parameters cannot take.
    """

    dimensions: ClassVar[tuple[str, ...]]
    """what each index of an action chooses, in order"""

    def __post_init__(self) -> None:
        for name in self.dimensions:
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ParameterError(f"A grid needs one or more values of {name}, each once; got {values}.")
        self._samples()

    @abstractmethod
    def parameters(self, action: npt.ArrayLike) -> TreeParameters:
        """Returns the tree parameters that an action stands for. Raises `ParameterError` for an action off the grid."""

    @abstractmethod
    def covered(self, rule: Mapping[str, Any]) -> ActionSpace:
        """Returns this space, reduced to actions that a trace can replay.

        Args:
            rule: the rule of the recording: its `max_depth` [tokens] and its `floor`, the least reach [probability].
        """

    @property
    def nvec(self) -> IntArray:
        """The number of values of each dimension, `int64[dimensions]`."""
        return np.array([len(getattr(self, name)) for name in self.dimensions], np.int64)

    @property
    def strides(self) -> IntArray:
        """The step in `flat` from one value of a dimension to the next: `action @ strides` is `flat(action)`."""
        return np.append(np.cumprod(self.nvec[:0:-1])[::-1], 1)

    @property
    def deepest(self) -> int:
        """The depth that trees of any action may have [tokens]."""
        return max(parameters.max_depth for parameters in self._samples())

    @property
    def widest(self) -> int:
        """The most children that a node may have under any action [nodes]."""
        return max(parameters.max_branch for parameters in self._samples())

    def __iter__(self) -> Iterator[TreeParameters]:
        """Yields every set of parameters once, in the order of `flat`."""
        return iter(dict.fromkeys(self.parameters(action) for action in np.ndindex(*self.nvec)))

    def flat(self, action: npt.ArrayLike) -> int:
        """Returns the number of an action. The last dimension counts fastest. Raises `ParameterError`."""
        return int(self._checked(action) @ self.strides)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON can hold them."""
        return dict(vars(self))

    def _values(self, action: npt.ArrayLike) -> list[Any]:
        indices = self._checked(action).tolist()
        return [getattr(self, name)[index] for name, index in zip(self.dimensions, indices, strict=True)]

    def _samples(self) -> list[TreeParameters]:
        """Returns parameters for each value, combined with the highest depth and the lowest other values.

        No value is ignored in that combination, and none is invalid in another one only.
        """
        lowest = [values.index(min(values)) for values in (getattr(self, name) for name in self.dimensions)]
        lowest[0] = int(np.argmax(getattr(self, self.dimensions[0])))
        changes = [(axis, index) for axis, size in enumerate(self.nvec) for index in range(size)]
        return [self.parameters([*lowest[:axis], index, *lowest[axis + 1 :]]) for axis, index in changes]

    def _checked(self, action: npt.ArrayLike) -> IntArray:
        indices = np.asarray(action)
        if indices.shape != (len(self.dimensions),) or not np.issubdtype(indices.dtype, np.integer):
            raise ParameterError(
                f"Expected an action of {len(self.dimensions)} integers ({', '.join(self.dimensions)}); "
                f"got {indices.dtype} of shape {indices.shape}."
            )
        for name, index, size in zip(self.dimensions, indices.tolist(), self.nvec.tolist(), strict=True):
            if not 0 <= index < size:
                raise ParameterError(f"Expected an index of {name} within 0 and {size - 1}; got {index}.")
        return indices.astype(np.int64)


@dataclass(frozen=True)
class ParameterGrid(ActionSpace):
    """The default action space, whose actions hold an index for each of six dimensions.

    Every rule-based choice is on the default grid: plain decoding, fixed binary trees, Phases 1 and 2, and all that
    Phase 3 can step to. Some actions have the same parameters. Plain decoding ignores all dimensions but the depth, and
    a fixed number of children ignores confidence.

    Raises:
        ParameterError: see `ActionSpace`.
    """

    dimensions = ("base_depth", "high_confidence", "early_stop", "deep", "source", "branch")

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
    """all other parameters, and `high_confidence` where it is ignored; by default those of Phase 2"""
    complete_budget: int = 128
    """`node_budget` and `frontier_width` where every node has equally many children; otherwise they are the base's
    [nodes]"""

    def parameters(self, action: npt.ArrayLike) -> TreeParameters:
        """See `ActionSpace.parameters`."""
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

    def covered(self, rule: Mapping[str, Any]) -> ParameterGrid:
        """See `ActionSpace.covered`: no depth or reach that was not recorded, and no complete trees."""
        max_depth = int(rule["max_depth"])
        return dataclasses.replace(
            self,
            base=self.base.capped(max_depth),
            base_depth=tuple(depth for depth in self.base_depth if depth <= max_depth),
            early_stop=tuple(reach for reach in self.early_stop if reach >= rule["floor"]),
            branch=(0,),
        )

    def index(self, parameters: TreeParameters) -> IntArray:
        """Returns the first action that stands for these parameters, `int64[6]`.

        All parameters that do not speculate count as plain decoding.

        Raises:
            ParameterError: they are not on the grid; the message names the fields that differ.
        """
        action = self.nearest(parameters)
        nearest = self.parameters(action)
        if nearest != parameters and (nearest.speculates or parameters.speculates):
            fields, near = dataclasses.asdict(parameters), dataclasses.asdict(nearest)
            off = [f"{name}={fields[name]} (nearest: {near[name]})" for name in fields if fields[name] != near[name]]
            raise ParameterError(
                f"These tree parameters are not on the grid: {', '.join(off)}. Take those of "
                "nearest(parameters), or make a grid that has them."
            )
        return action

    def nearest(self, parameters: TreeParameters) -> IntArray:
        """Returns the action whose parameters are nearest to these, field by field, `int64[6]`."""
        if not parameters.speculates and 0 in self.base_depth:
            return np.array([self.base_depth.index(0), 0, 0, 0, 0, 0])
        even = parameters.min_branch == parameters.max_branch and parameters.max_branch in self.branch
        branch = parameters.max_branch if even or 0 not in self.branch else 0
        deep = parameters.max_depth > parameters.base_depth or parameters.deep_expand < 1
        depths = [depth or np.inf for depth in self.base_depth] if parameters.speculates else self.base_depth
        return np.array(
            [
                _nearest(depths, parameters.base_depth),
                0 if even else _nearest(self.high_confidence, parameters.high_confidence),
                _nearest(self.early_stop, parameters.early_stop),
                _nearest(self.deep, deep),
                self.source.index(parameters.source) if parameters.source in self.source else 0,
                _nearest(self.branch, branch),
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """See `ActionSpace.to_dict`."""
        return super().to_dict() | {"base": self.base.record()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ParameterGrid:
        """Returns the grid of a record made by `to_dict`.

        Raises:
            UnknownNameError: an entry that no grid has.
            ParameterError: an entry is missing, or has a value that a grid cannot take.
        """
        values = checked_record(record, vars(cls()), "grid")
        try:
            base = checked_record(STOPS | record["base"], dataclasses.asdict(PLAIN), "base of a grid")
            values |= {name: tuple(values[name]) for name in cls.dimensions} | {"base": TreeParameters(**base)}
            return cls(**values)
        except TypeError as error:
            raise ParameterError(
                f"Expected a grid as to_dict() gives it; got a value of another type: {error}."
            ) from error

    def table(self) -> str:
        """Returns the dimensions as a Markdown table."""
        lines = ["| index | name | min | max | values |", "|---|---|---|---|---|"]
        for index, name in enumerate(self.dimensions):
            values = getattr(self, name)
            lines.append(f"| {index} | `{name}` | 0 | {len(values) - 1} | {', '.join(map(str, values))} |")
        return "\n".join(lines)


def checked_record(record: Mapping[str, Any], names: Collection[str], what: str) -> dict[str, Any]:
    """Returns a copy of `record`, which must have exactly these names. Raises `UnknownNameError`, `ParameterError`."""
    for name in record:
        if name not in names:
            raise UnknownNameError(f"entry of a {what}", name, names)
    missing = [name for name in names if name not in record]
    if missing:
        raise ParameterError(f"Expected a {what} with {', '.join(names)}; got none of {', '.join(missing)}.")
    return dict(record)


def _nearest(values: Sequence[float], wanted: float) -> int:
    return int(np.argmin(np.abs(np.asarray(values, np.float64) - wanted)))

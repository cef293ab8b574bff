"""Time of a forward by its rows, looked up fast."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from specgym.env.common.arrays import FloatArray
from specgym.env.common.errors import LimitError, ParameterError


class UnmeasuredError(LimitError):
    """A cost that a profile does not know; it is never made up. Args: what was counted, what came, the most known."""

    def __init__(self, what: str, came: int, most: int) -> None:
        super().__init__(
            f"This latency profile knows the cost of 1 to {most} {what}; got {came}. "
            "Ask for a smaller tree, or measure more rows with scripts.measure_latency."
        )


@dataclass(frozen=True)
class Curve:
    """Time of a forward by its rows, at each of a profile's contexts; linear between the knots.

    Raises:
        ParameterError: knots that do not ascend from 1 or more, or times that are negative, infinite or not one a knot.
    """

    what: str
    """what the rows are, for messages: "verified rows" """
    rows: tuple[int, ...]
    """the knots, ascending; fewer rows than the first one cost as much as that [rows]"""
    seconds: tuple[tuple[float, ...], ...]
    """time by context and knot [s]"""

    def __post_init__(self) -> None:
        if not self.rows or self.rows[0] < 1 or any(b <= a for a, b in itertools.pairwise(self.rows)):
            raise ParameterError(f"The curve of {self.what} needs ascending rows from 1 on; got {self.rows}.")
        for row in self.seconds:
            if len(row) != len(self.rows):
                raise ParameterError(f"The curve of {self.what} needs {len(self.rows)} times; got {len(row)}.")
            check_seconds(f"the curve of {self.what}", row)

    @property
    def most(self) -> int:
        """Most rows that it knows [rows]."""
        return self.rows[-1]

    @cached_property
    def table(self) -> FloatArray:
        """Time for every number of rows up to the last knot, `float64[contexts, rows + 1]`; no rows take no time."""
        numbers = np.arange(self.most + 1)
        table = np.stack([np.interp(numbers, self.rows, row) for row in self.seconds])
        table[:, 0] = 0.0
        return table

    @cached_property
    def _lists(self) -> list[list[float]]:
        """The table as plain lists, which Python reads several times faster than an array."""
        lists: list[list[float]] = self.table.tolist()
        return lists

    def at(self, low: int, share: float, rows: int) -> float:
        """Time of a forward [s].

        Args:
            low: index of the context below.
            share: how far the context is on the way to the next one; over 1 past the last one.
            rows: of the forward, at least 1.

        Raises:
            UnmeasuredError: no rows, or more than the last knot.
        """
        row = self._lists[low]
        if not 0 < rows < len(row):
            raise UnmeasuredError(self.what, rows, self.most)
        return row[rows] + share * (self._lists[low + 1][rows] - row[rows]) if share else row[rows]

    def at_all(
        self, low: npt.NDArray[np.intp], share: FloatArray, rows: npt.NDArray[Any], least: int = 0
    ) -> FloatArray:
        """`at` of many forwards at once, `float64[...]` of arrays that broadcast.

        Rows of 0 stand for a forward that there is none of, unless `least` is 1. Raises as `at` does.
        """
        if rows.size and not (least <= rows.min() and rows.max() <= self.most):
            wrong = rows.max() if rows.max() > self.most else rows.min()
            raise UnmeasuredError(self.what, int(wrong), self.most)
        high = np.minimum(low + 1, len(self.table) - 1)
        return np.asarray(self.table[low, rows] + share * (self.table[high, rows] - self.table[low, rows]))


def check_seconds(what: str, values: Sequence[float]) -> None:
    """Refuses times that cannot be. Raises `ParameterError`."""
    if not (np.isfinite(values).all() and min(values, default=0.0) >= 0):
        raise ParameterError(f"Expected the times of {what} to be finite and 0 or more [s]; got {list(values)}.")

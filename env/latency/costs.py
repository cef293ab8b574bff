"""Costs of rounds on one machine with one pair, predicted from a few curves, tables of time by rows.

A round takes ``overhead + root(r_0) + level(r_1) + level(r_2) + ... + verify(v) + lookup * looked_up`` seconds.

- ``r_0``: committed tokens that the draft has not read
- ``r_1, r_2 ...``: nodes that further draft levels expand
- ``v``: verified rows
- ``looked_up``: nodes that prompt lookup expands

Each curve is known at some contexts. It is linear in the context between two of them and past the last one, because
attention reads one more key for each token. Below the first context it is constant.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from specgym.env.common.arrays import FloatArray, IntArray
from specgym.env.common.errors import LimitError, ParameterError

CURVES = {"plain": "plain steps", "root": "owed tokens", "level": "expanded nodes", "verify": "verified rows"}
"""the curves of `RoundCosts`, with what their rows are"""


_LARGEST_TABLE = 2**20  # entries of a curve's table, which takes 40 MB then
_LONGEST, _SHORTEST = 1e6, 1e-9  # time of a forward, and least time of a plain step [s]


class UnmeasuredError(LimitError):
    """A profile does not know a cost; costs are never extrapolated silently.

    Args:
        what: what the rows are.
        came: the number of rows requested.
        most: the largest number of rows known.
    """

    def __init__(self, what: str, came: int, most: int) -> None:
        super().__init__(
            f"This latency profile knows the cost of 1 to {most} {what}; got {came}. "
            "Request a smaller tree, or measure more rows with `specgym measure-latency`."
        )


@dataclass(frozen=True)
class Curve:
    """Time of a forward by its rows, at each of a profile's contexts; linear between knots.

    Raises:
        ParameterError: the knots do not ascend from 1 or more, their number is not that of the times, or a time is
            negative or infinite.
    """

    what: str
    """what the rows are, for messages: "verified rows" """
    rows: tuple[int, ...]
    """the knots, ascending; fewer rows than the first knot cost as much as the first knot [rows]"""
    seconds: tuple[tuple[float, ...], ...]
    """time by context and knot [s]"""

    def __post_init__(self) -> None:
        if not self.rows or self.rows[0] < 1 or sorted(set(self.rows)) != list(self.rows):
            raise ParameterError(f"The curve of {self.what} needs ascending rows from 1 on; got {self.rows[:9]}.")
        if (self.rows[-1] + 1) * max(len(self.seconds), 1) > _LARGEST_TABLE:
            raise ParameterError(
                f"The curve of {self.what} is too long: expected at most {_LARGEST_TABLE:,} rows in all contexts "
                f"together; got {self.rows[-1]:,} in each of {len(self.seconds):,}."
            )
        for row in self.seconds:
            if len(row) != len(self.rows):
                raise ParameterError(f"The curve of {self.what} needs {len(self.rows)} times; got {len(row)}.")
            check_seconds(f"the curve of {self.what}", row)

    @property
    def most(self) -> int:
        """The largest number of rows known [rows]."""
        return self.rows[-1]

    @cached_property
    def table(self) -> FloatArray:
        """Time of every number of rows from 0 to the last knot, `float64[contexts, rows + 1]`; 0 rows take no time."""
        numbers = np.arange(self.most + 1)
        table = np.stack([np.interp(numbers, self.rows, row) for row in self.seconds])
        table[:, 0] = 0.0
        return table

    @cached_property
    def _lists(self) -> list[list[float]]:
        """The table as lists, which Python reads several times faster than an array."""
        return list(self.table.tolist())

    def at(self, low: int, share: float, rows: int) -> float:
        """Time of a forward [s].

        Args:
            low: index of the known context below.
            share: the context's place between that context, 0, and the next, 1; over 1 past the last context.
            rows: rows of the forward, at least 1.

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
        """Times of many forwards, `float64[...]`, of arguments that broadcast.

        Rows of 0 mean that there is no forward, and are refused if `least` is 1. Raises the same errors as `at`.
        """
        if rows.size and not (least <= rows.min() and rows.max() <= self.most):
            wrong = rows.max() if rows.max() > self.most else rows.min()
            raise UnmeasuredError(self.what, int(wrong), self.most)
        high = np.minimum(low + 1, len(self.table) - 1)
        return np.asarray(self.table[low, rows] + share * (self.table[high, rows] - self.table[low, rows]))


def check_seconds(what: str, values: Sequence[float]) -> None:
    """Refuses negative, infinite and impossibly long times. Raises `ParameterError`."""
    if not all(0 <= value <= _LONGEST for value in values):
        raise ParameterError(
            f"Expected the times of {what} to be finite and 0 or more, up to {_LONGEST:g} s; got {list(values)}."
        )


@dataclass(frozen=True)
class RoundCosts:
    """Costs of rounds for one mode, greedy or sampled. They serve as `Costs` of observations.

    Raises:
        ParameterError: the contexts do not ascend, a curve does not match them, or a time is negative or infinite.
    """

    contexts: tuple[int, ...]
    """contexts at which the curves are known, ascending [tokens]"""
    plain: Curve
    """a round that does not speculate, a curve of one row [s]"""
    root: Curve
    """the draft's first level of a round, by the committed tokens that the draft has not read (owes) [s]"""
    level: Curve
    """a further draft level, by the nodes that it expands [s]"""
    verify: Curve
    """a verification with its choice of tokens, by its rows, 1 + nodes [s]"""
    root_row: float
    """each owed token past the root curve's last knot, as in reading a prompt or the text of plain rounds [s]"""
    overhead: float
    """the rest of a speculative round: keeping the likeliest nodes, committing the path [s]"""
    lookup: float
    """each node that prompt lookup expands [s]"""

    def __post_init__(self) -> None:
        contexts = self.contexts
        if not contexts or not 0 <= contexts[0] <= contexts[-1] < 2**31 or sorted(set(contexts)) != list(contexts):
            raise ParameterError(f"Round costs need ascending contexts from 0 on; got {contexts}.")
        sizes = {name: len(getattr(self, name).seconds) for name in CURVES}
        if wrong := {name: size for name, size in sizes.items() if size != len(contexts)}:
            raise ParameterError(f"Round costs need times at each of {len(contexts)} contexts; got {wrong}.")
        check_seconds("round costs", (self.root_row, self.overhead, self.lookup))
        if self.plain.rows[0] > 1 or min(map(min, self.plain.seconds)) < _SHORTEST:
            raise ParameterError(f"A plain step must take time, {_SHORTEST:g} s at least; got {self.plain.seconds}.")

    def round_seconds(self, context: int, level_rows: Sequence[int], verified: int, lookup_nodes: int = 0) -> float:
        """Time of one round [s], in a few microseconds.

        Args:
            context: position of the root [tokens].
            level_rows: rows of each draft forward, the root's first; empty without a draft forward.
            verified: rows of the verification, 1 + nodes.
            lookup_nodes: nodes that prompt lookup expands, in all levels together.

        Raises:
            UnmeasuredError: fewer than 1 row, or more rows than a curve knows. Only owed tokens may exceed their
                curve, and cost `root_row` each, because their number has no bound.
        """
        low, share = self._between(context)
        if verified == 1 and not level_rows and not lookup_nodes:
            return self.plain.at(low, share, 1)
        seconds = self.overhead + self.lookup * lookup_nodes + self.verify.at(low, share, verified)
        if level_rows:
            owed = level_rows[0]
            known = min(owed, self.root.most)
            seconds += self.root.at(low, share, known) + self.root_row * (owed - known)
            for rows in level_rows[1:]:
                seconds += self.level.at(low, share, rows)
        return seconds

    def plain_seconds(self, context: int) -> float:
        """Time of a round that does not speculate, one plain step [s]."""
        return self.plain.at(*self._between(context), 1)

    def rounds_seconds(
        self, contexts: npt.ArrayLike, level_rows: IntArray, verified: npt.ArrayLike, lookup_nodes: npt.ArrayLike = 0
    ) -> FloatArray:
        """Times of many rounds at once [s], each as `round_seconds` computes it.

        Args:
            contexts: positions of the roots, `int[...]`.
            level_rows: rows of each draft forward, the root's first, padded with zeros, `int64[..., levels]`.
            verified: rows of the verifications, `int[...]`.
            lookup_nodes: nodes that prompt lookup expands, `int[...]`.

        Returns:
            `float64[...]`, of the shape that the arguments broadcast to.

        Raises:
            UnmeasuredError: as for `round_seconds`.
        """
        verified, lookup_nodes, rows = np.asarray(verified), np.asarray(lookup_nodes), np.asarray(level_rows)
        low, share = self.between(np.asarray(contexts))
        seconds = self.overhead + self.lookup * lookup_nodes + self.verify.at_all(low, share, verified, least=1)
        if rows.shape[-1]:
            seconds = seconds + self.roots_seconds(contexts, rows[..., 0])
        for depth in range(1, rows.shape[-1]):
            seconds = seconds + self.level.at_all(low, share, rows[..., depth])
        idle = (verified == 1) & (rows == 0).all(axis=-1) & (lookup_nodes == 0)
        return np.where(idle, self.plains_seconds(contexts), seconds)

    def roots_seconds(self, contexts: npt.ArrayLike, owed: npt.ArrayLike) -> FloatArray:
        """Times of the draft's first level alone, for many rounds [s].

        Args:
            contexts: positions of the roots, `int[...]`.
            owed: committed tokens that the draft owes; 0 take no time, `int[...]`.

        Returns:
            `float64[...]`, of the shape that the arguments broadcast to.
        """
        low, share = self.between(np.asarray(contexts))
        known = np.minimum(owed, self.root.most)
        return np.asarray(self.root.at_all(low, share, known) + self.root_row * (np.asarray(owed) - known))

    def plains_seconds(self, contexts: npt.ArrayLike) -> FloatArray:
        """Times of plain steps at many contexts `int[...]`, `float64[...]` [s]."""
        low, share = self.between(np.asarray(contexts))
        return self.plain.at_all(low, share, np.ones_like(low))

    def level_cost(self, context: int, rows: int = 1) -> float:
        """Cost of one more draft level of that many rows [plain steps]. Raises `UnmeasuredError`."""
        return self.level.at(*self._between(context), rows) / self.plain_seconds(context)

    def row_cost(self, context: int, verified: int = 2, more: int = 16) -> float:
        """Cost of one more verified row, as a mean over the next rows [plain steps].

        Measured curves have steps (tiles of a matrix product, values pooled by the fit), so the next row alone says
        little. The mean over a range is what a tree of some size pays for a node.

        Args:
            context: position of the root [tokens].
            verified: rows of the verification so far. The default is 2, because the step from 1 to 2 turns a plain step
                into a tree and is not the cost of a row.
            more: length of the range, cut where the curve ends [rows].

        Raises:
            UnmeasuredError: the curve does not know the row after `verified`.
        """
        low, share = self._between(context)
        last = min(verified + more, self.verify.most)
        if not 1 <= verified < last:
            raise UnmeasuredError(self.verify.what, verified + 1, self.verify.most)
        rise = self.verify.at(low, share, last) - self.verify.at(low, share, verified)
        return rise / (last - verified) / self.plain_seconds(context)

    def _between(self, context: int) -> tuple[int, float]:
        """Scalar version of `between`."""
        known = self.contexts
        low = min(max(bisect_right(known, context) - 1, 0), max(len(known) - 2, 0))
        if context <= known[low] or len(known) == 1:
            return low, 0.0
        return low, (context - known[low]) / (known[low + 1] - known[low])

    def between(self, contexts: npt.NDArray[Any]) -> tuple[npt.NDArray[np.intp], FloatArray]:
        """Finds many contexts `int[...]` among the known ones.

        Returns:
            Index of the known context at or below each, `intp[...]`, and the place between that context, 0, and the
            next, 1, `float64[...]`: over 1 past the last known context. Times are linear in this share.
        """
        known = np.array(self.contexts)
        low = np.clip(np.searchsorted(known, contexts, side="right") - 1, 0, max(len(known) - 2, 0))
        if len(known) == 1:
            return low, np.zeros(low.shape)
        return low, np.maximum((contexts - known[low]) / (known[low + 1] - known[low]), 0.0)

"""What a round costs on one machine with one pair, predicted from a few curves.

A round of levels with r_0 (committed tokens that the draft still owes), r_1, r_2 ... rows and v verified rows takes
``overhead + root(r_0) + level(r_1) + level(r_2) + ... + verify(v)``, and ``lookup`` for every node that prompt lookup
expands. Every curve is known at some contexts. Between two of them, and past the last one, it is taken to be linear in
the context, because attention reads one more key for every token; below the first one it is held.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from specgym.env.common.arrays import FloatArray, IntArray
from specgym.env.common.errors import ParameterError
from specgym.env.latency.curve import Curve, UnmeasuredError, check_seconds


@dataclass(frozen=True)
class RoundCosts:
    """The cost of rounds for one way of decoding, greedy or sampled; it is what an observation's `Costs` come from.

    Raises:
        ParameterError: contexts that do not ascend, tables that do not match them, or times that cannot be.
    """

    contexts: tuple[int, ...]
    """contexts at which the curves are known, ascending [tokens]"""
    plain: Curve
    """a round that does not speculate, a curve of one row [s]"""
    root: Curve
    """the draft's first level of a round, by the committed tokens that the draft still owed"""
    level: Curve
    """a further draft level by the nodes that it expands"""
    verify: Curve
    """a verification by its rows, 1 + nodes, the choice of the tokens included"""
    root_row: float
    """an owed token past the root curve's last knot: the draft reads a prompt, or what plain rounds wrote [s]"""
    overhead: float
    """what a speculative round takes besides: choosing what to keep of the tree, committing the path [s]"""
    lookup: float
    """a node that prompt lookup expands [s]"""

    def __post_init__(self) -> None:
        contexts = self.contexts
        if not contexts or contexts[0] < 0 or any(b <= a for a, b in itertools.pairwise(contexts)):
            raise ParameterError(f"Round costs need ascending contexts from 0 on; got {contexts}.")
        sizes = {name: len(getattr(self, name).seconds) for name in ("plain", "root", "level", "verify")}
        if wrong := {name: size for name, size in sizes.items() if size != len(contexts)}:
            raise ParameterError(f"Round costs need times at each of {len(contexts)} contexts; got {wrong}.")
        check_seconds("round costs", (self.root_row, self.overhead, self.lookup))
        if min(map(min, self.plain.seconds)) == 0:
            raise ParameterError(f"A plain step must take time; got {self.plain.seconds}.")

    def round_seconds(self, context: int, level_rows: Sequence[int], verified: int, lookup_nodes: int = 0) -> float:
        """Time of one round [s], in a few microseconds.

        Args:
            context: position of the root [tokens].
            level_rows: rows of each draft forward, the root's first; empty if the draft model was not asked.
            verified: rows of the verification, 1 + nodes.
            lookup_nodes: nodes that prompt lookup expanded, all levels together.

        Raises:
            UnmeasuredError: more rows than the curves know, or fewer than there can be. Only the owed tokens go on
                past their curve, by `root_row` each: there is no bound to what may be owed.
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

    def round_steps(self, context: int, level_rows: Sequence[int], verified: int, lookup_nodes: int = 0) -> float:
        """`round_seconds` in plain steps at that context."""
        return self.round_seconds(context, level_rows, verified, lookup_nodes) / self.plain_seconds(context)

    def plain_seconds(self, context: int) -> float:
        """Time of a round that does not speculate, one plain step [s]."""
        return self.plain.at(*self._between(context), 1)

    def rounds_seconds(
        self, contexts: npt.ArrayLike, level_rows: IntArray, verified: npt.ArrayLike, lookup_nodes: npt.ArrayLike = 0
    ) -> FloatArray:
        """Times of many rounds at once [s], those that `round_seconds` tells one by one.

        Args:
            contexts: positions of the roots, `int[...]`.
            level_rows: rows of each draft forward, the root's first, filled up with zeros, `int64[..., levels]`.
            verified: rows of the verifications, `int[...]`.
            lookup_nodes: nodes that prompt lookup expanded, `int[...]`.

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
        """Times of the draft's first level alone [s], of many rounds at once.

        Args:
            contexts: positions of the roots, `int[...]`.
            owed: committed tokens that the draft still owes; none take no time, `int[...]`.

        Returns:
            `float64[...]`, of the shape that the arguments broadcast to.
        """
        low, share = self.between(np.asarray(contexts))
        known = np.minimum(owed, self.root.most)
        return np.asarray(self.root.at_all(low, share, known) + self.root_row * (np.asarray(owed) - known))

    def plains_seconds(self, contexts: npt.ArrayLike) -> FloatArray:
        """`plain_seconds` at many contexts at once, `float64[...]` of `int[...]` [s]."""
        low, share = self.between(np.asarray(contexts))
        return self.plain.at_all(low, share, np.ones_like(low))

    def level_cost(self, context: int, rows: int = 1) -> float:
        """What one more draft level of that many rows costs [plain steps]. Raises `UnmeasuredError`."""
        return self.level.at(*self._between(context), rows) / self.plain_seconds(context)

    def row_cost(self, context: int, verified: int = 2, more: int = 16) -> float:
        """What one more verified row costs, on average over the next ones [plain steps].

        A measured curve has steps (tiles of a matrix product, neighbours that the fit pooled), so the cost of the very
        next row says little; the mean over a stretch is what a tree of some size pays for a node.

        Args:
            context: position of the root [tokens].
            verified: rows that the verification has already; 2 by default, since the step from 1 to 2 makes a tree of a
                plain step and is no price of a row.
            more: length of the stretch, cut where the curve ends [rows].

        Raises:
            UnmeasuredError: the curve does not know the row after `verified`.
        """
        where = self._between(context)
        last = min(verified + more, self.verify.most)
        if not 1 <= verified < last:
            raise UnmeasuredError(self.verify.what, verified + 1, self.verify.most)
        rise = self.verify.at(*where, last) - self.verify.at(*where, verified)
        return rise / (last - verified) / self.plain_seconds(context)

    def _between(self, context: int) -> tuple[int, float]:
        """Index of the known context at or below this one, and how far this one is on the way to the next."""
        known = self.contexts
        low = min(max(bisect_right(known, context) - 1, 0), max(len(known) - 2, 0))
        if context <= known[low] or len(known) == 1:
            return low, 0.0
        return low, (context - known[low]) / (known[low + 1] - known[low])

    def between(self, contexts: npt.NDArray[Any]) -> tuple[npt.NDArray[np.intp], FloatArray]:
        """Where many contexts lie among the known ones.

        Returns:
            Index of the known context at or below each, `intp[...]`, and how far it is on the way to the next one, over
            1 past the last one, `float64[...]`. A time at a context is linear in that share.
        """
        known = np.array(self.contexts)
        low = np.clip(np.searchsorted(known, contexts, side="right") - 1, 0, max(len(known) - 2, 0))
        if len(known) == 1:
            return low, np.zeros(low.shape)
        return low, np.maximum((contexts - known[low]) / (known[low + 1] - known[low]), 0.0)

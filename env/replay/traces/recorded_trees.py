"""The guesses of drafts along a recorded text, at any position and as a live draft makes them.

Those of a draft model are recorded: the tree of its expansions at every position. Those of lookup follow from the text.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from specgym.env.common.arrays import FloatArray, IntArray
from specgym.env.common.errors import UnrecordedError
from specgym.env.drafts.base import Draft
from specgym.env.drafts.calibrator import Calibrator
from specgym.env.drafts.lookup import LATEST, LookupDraft
from specgym.env.tree.growth import Candidates
from specgym.env.tree.tree import TokenForest


@dataclass(eq=False)
class RecordedTrees:
    """Expansions of a draft, a row each: a root or a node of the tree of a position, and its candidates."""

    tokens: IntArray
    """candidates, best first, `int64[rows, columns]`"""
    log_probs: FloatArray
    """of the candidates, as rounded by the draft; minus infinity is no offer, `float64[rows, columns]`"""
    entropy: FloatArray
    """of the draft's distribution there, `float64[rows]` [nats]"""
    parent: IntArray
    """row that the node is a candidate of, -1 for a root, `int64[rows]`"""
    rank: IntArray
    """which of its candidates, 0 for a root, `int64[rows]`"""
    position: IntArray
    """of the root in the text, `int64[rows]`"""

    def __post_init__(self) -> None:
        rows, below = np.arange(len(self)), self.parent >= 0
        # Row of each candidate that was expanded itself, -1 for others, [rows, columns]
        self.child: IntArray = np.full(self.tokens.shape, -1, np.int64)
        self.child[self.parent[below], self.rank[below]] = rows[below]
        positions = self.position[~below]
        self._roots: IntArray = np.full(positions.max(initial=-1) + 2, -1, np.int64)  # the last one: nothing recorded
        self._roots[positions] = rows[~below]

    @classmethod
    def empty(cls, columns: int) -> RecordedTrees:
        """Returns a table without rows, with so many candidates of a row."""
        none = np.empty(0, np.int64)
        return cls(np.empty((0, columns), np.int64), np.empty((0, columns)), np.empty(0), none, none, none)

    @property
    def columns(self) -> int:
        """Candidates of a row."""
        return int(self.tokens.shape[1])

    def __len__(self) -> int:
        return len(self.parent)

    def append(self, candidates: Candidates, parent: IntArray, rank: IntArray, position: IntArray) -> IntArray:
        """Adds rows, each a root (parent -1) or a candidate of an earlier row; returns their numbers."""
        before, spare = len(self), ((0, 0), (0, self.columns - candidates.tokens.shape[1]))  # of a small vocabulary
        log_probs = np.pad(candidates.log_probs, spare, constant_values=-np.inf)
        added = np.pad(candidates.tokens, spare), log_probs, candidates.entropy, parent, rank, position
        for field, values in zip(fields(self), added, strict=True):
            setattr(self, field.name, np.concatenate([getattr(self, field.name), values]))
        self.__post_init__()
        return np.arange(before, len(self))

    def roots(self, positions: IntArray) -> IntArray:
        """Returns the rows of the roots at `positions`, -1 where nothing was recorded."""
        return self._roots[np.where((positions >= 0) & (positions < len(self._roots)), positions, -1)]

    def candidates(self, rows: IntArray, k: int) -> Candidates:
        """Returns the first k candidates of rows."""
        log_probs = self.log_probs[rows, :k]
        return Candidates(self.tokens[rows, :k], log_probs, np.exp(log_probs[:, 0]), entropy=self.entropy[rows])

    @classmethod
    def joined(cls, tables: Sequence[RecordedTrees], offsets: Sequence[int]) -> RecordedTrees:
        """Returns the rows of several tables, with the offset of each table added to its positions."""
        if len(tables) == 1 and offsets[0] == 0:
            return tables[0]
        sizes = np.cumsum([0, *map(len, tables)])[:-1]
        parts = []
        for table, size, offset in zip(tables, sizes, offsets, strict=True):
            parent = np.where(table.parent < 0, -1, table.parent + size)
            parts.append((table.tokens, table.log_probs, table.entropy, parent, table.rank, table.position + offset))
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    def by_position(self) -> RecordedTrees:
        """Returns the same rows sorted by position; those of a position stay in their order."""
        order = np.argsort(self.position, kind="stable")
        number = np.append(np.argsort(order), -1)  # the new number of each row; the spare last entry is for roots
        columns: dict[str, Any] = {field.name: getattr(self, field.name)[order] for field in fields(self)}
        return RecordedTrees(**columns | {"parent": number[columns["parent"]]})


class RecordedLookup:
    """An `Expand` over a table, for one growth of a forest.

    Args:
        table: the recording.
        positions: of the roots of the forest's trees, `int64[trees]`.
    """

    def __init__(self, table: RecordedTrees, positions: IntArray) -> None:
        self.table, self.positions = table, positions
        self.rows: IntArray = np.empty(0, np.int64)  # of the forest's nodes, -1 where unknown

    def __call__(self, forest: TokenForest, nodes: IntArray, k: int) -> Candidates:
        """See `Expand`.

        Raises:
            UnrecordedError: a node, or so many candidates of one, were not recorded.
        """
        if k > self.table.columns:
            raise UnrecordedError(
                f"{self.table.columns} candidates of a node were recorded; {k} are asked for. Record a trace of more."
            )
        # np.pad would take ten times as long for the few nodes of a tree.
        self.rows = np.concatenate([self.rows, np.full(len(forest) - len(self.rows), -1, np.int64)])
        if forest.depth[nodes[0]] == 0:
            rows = self.table.roots(self.positions[forest.owner[nodes]])
            above, rank = np.full(len(nodes), -1, np.int64), np.zeros(len(nodes), np.int64)
        else:
            above = self.rows[forest.parent[nodes]]
            rank = (self.table.tokens[above] == forest.token[nodes][:, None]).argmax(axis=1)
            rows = self.table.child[above, rank]
        missing = rows < 0
        if missing.any():
            rows[missing] = self.supply(forest, nodes[missing], above[missing], rank[missing])
        self.rows[nodes] = rows
        return self.table.candidates(rows, k)

    def supply(self, forest: TokenForest, nodes: IntArray, above: IntArray, rank: IntArray) -> IntArray:
        """Returns rows of nodes that the table lacks; a recording cannot supply them.

        Raises:
            UnrecordedError: always.
        """
        node = int(nodes[0])
        where, depth = int(self.positions[forest.owner[node]]), int(forest.depth[node])
        raise UnrecordedError(
            f"The trace holds no guess at position {where} after a branch of {depth} tokens with a reach of "
            f"{forest.reach[node]:.4g}. Ask for a tree within the recorded ones (early_stop, depth), or record more."
        )


class RecordedDraft(Draft):
    """A draft that repeats the recorded guesses of another one, in the order of the text or wherever `seek` goes.

    Args:
        table: the guesses.
        kind: of the recorded draft; it decides which tokens are read again. A causal draft keeps the accepted nodes
            that it expanded. A feature draft reads all committed tokens again, and the first one of a text never.
        calibrator: of the recorded draft.
        context_limit: of the recorded draft [tokens].
    """

    def __init__(
        self, table: RecordedTrees, kind: str, calibrator: Calibrator | None = None, context_limit: int | None = None
    ) -> None:
        self.table, self.kind, self.calibrator, self.context_limit = table, kind, calibrator, context_limit

    def start(self, chooser: object) -> None:
        """See `Draft.start`."""
        self.seek(-1)

    def commit(self, tokens: Sequence[int], features: object, path: IntArray) -> None:
        """See `Draft.commit`."""
        self.seek(self.position + len(tokens))

    def seek(self, position: int | IntArray) -> None:
        """Begins a tree whose root is the token at `position`, or a forest whose roots are at several positions."""
        self.position = position
        self._walk = RecordedLookup(self.table, np.atleast_1d(position))

    def expand(self, tree: TokenForest, nodes: IntArray, k: int, entropy: bool = True) -> Candidates:
        """See `Draft.expand`; entropies were recorded and cost nothing. Raises `UnrecordedError`."""
        if not tree.depth[nodes[0]]:
            self.seek(self.position)  # another tree at the same root
        return self._walk(tree, nodes, k)

    def kept(self, path: IntArray) -> int:
        """Counts those of the nodes that the draft need not read again once they are committed."""
        if self.kind != "causal":
            return 0
        rows = self._walk.rows
        return int((rows[path[path < len(rows)]] >= 0).sum())


class WholeTextLookup(LookupDraft):
    """Gives at any position the candidates of a `LookupDraft` that has read no further.

    Args:
        text: the whole text [token ids].
    """

    def __init__(self, text: Sequence[int]) -> None:
        super().__init__()
        self.forget()
        self.until = 0
        counts = np.zeros((len(text) + 1, 2, self.longest + 1), np.int32)
        for position, token in enumerate(text):
            self.until = position
            self.take(token)
            counts[position + 1] = self.tried, self.right
        self._counts = counts
        self.until = len(text)

    def seek(self, until: int) -> None:
        """Goes back to when the first `until` tokens had been read."""
        self.until = until
        self.tried, self.right = self._counts[until].tolist()

    def _ending(self) -> list[int]:
        return self.text[max(self.until - self.longest, 0) : self.until]

    def _occurrences(self, ending: list[int]) -> Sequence[int]:
        ends = self.ends.get(tuple(ending[-self.shortest :]), [])
        seen = bisect_right(ends, self.until - 2)  # something followed
        return ends[max(seen - LATEST, 0) : seen][::-1]

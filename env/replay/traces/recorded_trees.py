"""What a draft guessed along a text: the tree of its expansions at every position, asked again as live drafts are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specgym.env.common.arrays import FloatArray, IntArray
from specgym.env.common.errors import UnrecordedError
from specgym.env.drafts.calibrator import Calibrator
from specgym.env.tree.growth import Candidates
from specgym.env.tree.tree import TokenForest


class RecordedTrees:
    """Expansions of a draft, a row each: the root of a position's tree, or a node of it, and what may follow.

    Args:
        columns: candidates of a row.

    Attributes:
        tokens: candidates, best first, `int64[rows, columns]`.
        log_probs: their log-probabilities, as rounded by the draft; minus infinity is no offer,
            `float64[rows, columns]`.
        entropy: of the draft's distribution there, `float64[rows]` [nats].
        parent: row that the node is a candidate of, -1 for a root, `int64[rows]`.
        rank: which of its candidates, 0 for a root, `int64[rows]`.
        position: of the root in the text, `int64[rows]`.
        child: row of each candidate that was expanded itself, -1 for others, `int64[rows, columns]`.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.tokens: IntArray = np.empty((0, columns), np.int64)
        self.log_probs: FloatArray = np.empty((0, columns))
        self.entropy: FloatArray = np.empty(0)
        self.parent = self.rank = self.position = np.empty(0, np.int64)
        self.child: IntArray = np.empty((0, columns), np.int64)
        self._roots: IntArray = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.parent)

    def append(self, found: Candidates, parent: IntArray, rank: IntArray, position: IntArray) -> IntArray:
        """Adds rows, each a root (parent -1) or a candidate of a row that is there; returns their numbers."""
        rows = np.arange(len(self), len(self) + len(parent))
        spare = ((0, 0), (0, self.columns - found.tokens.shape[1]))  # of a vocabulary smaller than that
        assert found.entropy is not None, "recorded drafts tell their entropies"
        self.tokens = np.concatenate([self.tokens, np.pad(found.tokens, spare)])
        self.log_probs = np.concatenate([self.log_probs, np.pad(found.log_probs, spare, constant_values=-np.inf)])
        self.entropy = np.concatenate([self.entropy, found.entropy])
        self.parent = np.concatenate([self.parent, parent])
        self.rank = np.concatenate([self.rank, rank])
        self.position = np.concatenate([self.position, position])
        self.child = np.concatenate([self.child, np.full((len(rows), self.columns), -1, np.int64)])
        below = parent >= 0
        self.child[parent[below], rank[below]] = rows[below]
        self._note_roots(rows[~below], position[~below])
        return rows

    def _note_roots(self, rows: IntArray, positions: IntArray) -> None:
        if not len(rows):
            return
        missing = int(positions.max()) + 1 - len(self._roots)
        self._roots = np.concatenate([self._roots, np.full(max(missing, 0), -1, np.int64)])
        self._roots[positions] = rows

    def roots(self, positions: IntArray) -> IntArray:
        """Rows of the roots at `positions`, -1 where nothing was recorded."""
        known = (positions >= 0) & (positions < len(self._roots))
        return np.where(known, self._roots[np.where(known, positions, 0)] if len(self._roots) else -1, -1)

    def candidates(self, rows: IntArray, k: int) -> Candidates:
        """The first k candidates of rows."""
        log_probs = self.log_probs[rows, :k]
        return Candidates(self.tokens[rows, :k], log_probs, np.exp(log_probs[:, 0]), entropy=self.entropy[rows])

    @classmethod
    def joined(cls, tables: Sequence[RecordedTrees], offsets: Sequence[int]) -> RecordedTrees:
        """The rows of several tables, each with its positions moved up by its offset."""
        joined = cls(tables[0].columns)
        sizes = np.cumsum([0, *map(len, tables)])
        above = [
            np.where(table.parent < 0, -1, table.parent + size) for table, size in zip(tables, sizes, strict=False)
        ]
        found = Candidates(
            np.concatenate([table.tokens for table in tables]),
            np.concatenate([table.log_probs for table in tables]),
            np.empty(0),
            entropy=np.concatenate([table.entropy for table in tables]),
        )
        places = np.concatenate([table.position + offset for table, offset in zip(tables, offsets, strict=True)])
        joined.append(found, np.concatenate(above), np.concatenate([table.rank for table in tables]), places)
        return joined

    def by_position(self) -> RecordedTrees:
        """The same rows, those of a position together and in the order in which they came."""
        order = np.argsort(self.position, kind="stable")
        number = np.empty(len(self) + 1, np.int64)
        number[order] = np.arange(len(self))
        number[-1] = -1
        table = RecordedTrees(self.columns)
        found = Candidates(self.tokens[order], self.log_probs[order], np.empty(0), entropy=self.entropy[order])
        table.append(found, number[self.parent[order]], self.rank[order], self.position[order])
        return table


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
        return self.table.candidates(self.locate(forest, nodes, k), k)

    def locate(self, forest: TokenForest, nodes: IntArray, k: int) -> IntArray:
        """The rows of nodes, `int64[nodes]`. Raises as a call does."""
        if k > self.table.columns:
            raise UnrecordedError(
                f"{self.table.columns} candidates of a node were recorded; {k} are asked for. Record a trace of more."
            )
        fresh = np.full(len(forest) - len(self.rows), -1, np.int64)
        self.rows = np.concatenate([self.rows, fresh])
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
        return rows

    def supply(self, forest: TokenForest, nodes: IntArray, above: IntArray, rank: IntArray) -> IntArray:
        """Rows of nodes that the table lacks: a recording has none.

        Raises:
            UnrecordedError: always.
        """
        node = int(nodes[0])
        where, depth = int(self.positions[forest.owner[node]]), int(forest.depth[node])
        raise UnrecordedError(
            f"The trace holds no guess at position {where} after a branch of {depth} tokens with a reach of "
            f"{forest.reach[node]:.4g}. Ask for a tree within the recorded ones (early_stop, depth), or record more."
        )


class RecordedDraft:
    """A draft that says again what another one said.

    Args:
        table: what that one said along the text that will be decoded.
        kind: that one's kind, which decides how much it owes: a causal draft keeps the accepted nodes that it expanded,
            a feature draft reads all committed tokens again and the first one of a text never.
        calibrator: its calibrator.
        context_limit: its limit [tokens].
    """

    feature_layers: tuple[int, ...] | None = None
    forward_seconds = 0.0
    _owed = 0

    def __init__(
        self, table: RecordedTrees, kind: str, calibrator: Calibrator | None = None, context_limit: int | None = None
    ) -> None:
        self.table, self.kind, self.calibrator, self.context_limit = table, kind, calibrator, context_limit

    @property
    def owed(self) -> int:
        """See `Draft.owed`."""
        return self._owed

    def start(self, chooser: object) -> None:
        """See `Draft.start`."""
        self._owed = -1 if self.kind == "feature" else 0
        self.seek(-1)

    def commit(self, tokens: Sequence[int], features: object, path: IntArray) -> None:
        """See `Draft.commit`."""
        self._owed += len(tokens) - self.kept(path)
        self.seek(self.position + len(tokens))

    def expand(self, tree: TokenForest, nodes: IntArray, k: int, entropy: bool = True) -> Candidates:
        """See `Draft.expand`; entropies were recorded and cost nothing. Raises `UnrecordedError`."""
        self._owed = 0
        if not tree.depth[nodes[0]]:
            self.seek(self.position)  # another tree at the same place
        return self._walk(tree, nodes, k)

    def seek(self, position: int) -> None:
        """Goes to where the token at `position` is the root of a tree."""
        self.position = position
        self._walk = RecordedLookup(self.table, np.array([position]))

    def kept(self, path: IntArray) -> int:
        """How many of these nodes of the tree the draft need not read again once they are committed."""
        if self.kind != "causal":
            return 0
        rows = self._walk.rows
        return int((rows[path[path < len(rows)]] >= 0).sum())

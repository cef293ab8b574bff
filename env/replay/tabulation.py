"""What comes of a choice at every position of many recorded texts at once.

The outcome of a round is a function of its root's position and of the tree parameters, so a table of it answers for
every episode that ever passes there. The trees of all positions grow together, by the one growth rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import cast

import numpy as np

from specgym.env.common.arrays import BoolArray, IntArray
from specgym.env.common.errors import ParameterError, TraceError
from specgym.env.drafts.base import Draft
from specgym.env.drafts.calibrator import Calibrator
from specgym.env.drafts.lookup import LookupDraft
from specgym.env.drafts.merged import MergedDraft
from specgym.env.gym.grid import ParameterGrid
from specgym.env.replay.traces.recorded_trees import RecordedLookup, RecordedTrees
from specgym.env.replay.traces.records import TraceHeader, TraceText
from specgym.env.replay.traces.whole_text_lookup import WholeTextLookup
from specgym.env.tree.growth import Candidates, Expand, grow
from specgym.env.tree.parameters import TreeParameters
from specgym.env.tree.tree import TokenForest

_TOGETHER = 4096  # trees that grow together: their arrays stay within a few MiB


class TraceTable:
    """Texts of a trace, all greedy or all sampled, one behind the other.

    Args:
        texts: the texts.
        header: of their trace.

    Attributes:
        tokens: of all texts, `int64[tokens]`.
        begin: where each text's answer begins, whose first token is the first root, `int64[texts]`.
        end: where each text ends, `int64[texts]`.
        limit: where it would have to end, `int64[texts]`.
        roots: every position that can be a round's root, `int64[roots]`.
        owner: the text that each token belongs to, `int64[tokens]`.
        start: where each text starts, `int64[texts]`.

    Raises:
        ParameterError: greedy and sampled texts together.
        TraceError: no text.
    """

    def __init__(self, texts: Sequence[TraceText], header: TraceHeader) -> None:
        if not texts:
            raise TraceError("Expected one recorded text or more; got none. Record some with scripts.record.")
        if len({text.settings.greedy for text in texts}) > 1:
            raise ParameterError("Expected texts that are all greedy or all sampled; got both. Take one temperature.")
        self.texts, self.header = texts, header
        self.greedy = texts[0].settings.greedy
        lengths = np.array([len(text.tokens) for text in texts])
        prompts = np.array([text.prompt for text in texts])
        asked = np.array([text.max_new_tokens for text in texts])
        self.tokens: IntArray = np.concatenate([text.tokens for text in texts]).astype(np.int64)
        self.start: IntArray = np.cumsum(lengths) - lengths
        self.begin: IntArray = self.start + prompts
        self.end: IntArray = self.start + lengths
        self.limit: IntArray = self.start + np.minimum(prompts + asked, header.context_limits[0])
        self.owner: IntArray = np.repeat(np.arange(len(texts)), lengths)
        self.roots: IntArray = np.concatenate(
            [np.arange(begin, end - 1) for begin, end in zip(self.begin, self.end, strict=True)]
        )
        self.table = RecordedTrees.joined([text.guesses for text in texts], self.start.tolist())
        self.calibrator = None if header.calibrator is None else Calibrator.of(header.calibrator)
        self.lookups = [WholeTextLookup(text.tokens) for text in texts]
        self.looked_up: dict[tuple[int, tuple[int, ...]], list[tuple[int, float]]] = {}

    def deepest(self, roots: IntArray) -> IntArray:
        """Most draft tokens on a path at each root, see `DecodingSession`, `int64[roots]`."""
        deepest: IntArray = np.maximum(self.limit[self.owner[roots]] - roots - 2, 0)
        return deepest


@dataclass(frozen=True)
class Outcomes:
    """What comes of a choice at each of n roots; see `RoundOutcome` and `RoundFacts`."""

    accepted: IntArray
    """`int64[n]`"""
    drafted: IntArray
    """`int64[n]`"""
    depth: IntArray
    """`int64[n]`"""
    asked: BoolArray
    """`bool[n]`"""
    deeper_rows: IntArray
    """rows of each draft forward below the root, filled up with zeros, `int64[n, levels]`"""
    lookup_nodes: IntArray
    """`int64[n]`"""
    kept: IntArray
    """`int64[n]`"""


def covered_grid(header: TraceHeader) -> ParameterGrid:
    """The default grid as far as a trace by such a rule answers every action of it."""
    whole, deepest = ParameterGrid(), int(header.rule["max_depth"])
    return replace(
        whole,
        base=whole.base.capped(deepest),
        base_depth=tuple(depth for depth in whole.base_depth if depth <= deepest),
        early_stop=tuple(reach for reach in whole.early_stop if reach >= header.rule["floor"]),
        branch=(0,),
    )


def check_covered(grid: ParameterGrid, header: TraceHeader) -> None:
    """Refuses a grid that asks for less reach or more depth than a trace by such a rule holds.

    Raises:
        ParameterError: it does.
    """
    floor, deepest = header.rule["floor"], header.rule["max_depth"]
    if min(grid.early_stop) < floor or grid.deepest > deepest:
        raise ParameterError(
            f"The trace holds trees of reach {floor:g} and more, down to depth {deepest}; the grid has an early_stop "
            f"of {min(grid.early_stop):g} and a depth of {grid.deepest}. Leave such values out (grid.early_stop, "
            "grid.base_depth, grid.base.max_depth), or record more with scripts.record."
        )


class _Model:
    """The recorded draft as `MergedDraft` asks it, after nodes of many trees."""

    context_limit = None  # recorded texts leave room for every branch
    owed = 0

    def __init__(self, corpus: TraceTable, roots: IntArray) -> None:
        self.calibrator, self.walk, self.trees = corpus.calibrator, RecordedLookup(corpus.table, roots), len(roots)
        self.rows: list[IntArray] = []

    def expand(self, forest: TokenForest, nodes: IntArray, k: int, entropy: bool = True) -> Candidates:
        """See `RecordedDraft.expand`."""
        self.rows.append(np.bincount(forest.owner[nodes], minlength=self.trees))
        return self.walk(forest, nodes, k)


class _Lookup:
    """Prompt lookup after nodes of many trees; what it said is remembered for other choices."""

    def __init__(self, corpus: TraceTable, roots: IntArray) -> None:
        self.corpus, self.roots = corpus, roots
        self.nodes = np.zeros(len(roots), np.int64)
        self.paths: list[tuple[int, ...]] = []  # tokens from below the root to each node

    def expand(self, forest: TokenForest, nodes: IntArray, k: int) -> Candidates:
        """See `LookupDraft.expand`."""
        self.nodes += np.bincount(forest.owner[nodes], minlength=len(self.nodes))
        for node in range(len(self.paths), len(forest)):
            parent = int(forest.parent[node])
            self.paths.append(() if parent < 0 else (*self.paths[parent], int(forest.token[node])))
        tokens, log_probs = np.zeros((len(nodes), k), np.int64), np.full((len(nodes), k), -np.inf)
        for row, node in enumerate(nodes.tolist()):
            found = self._after(int(self.roots[forest.owner[node]]), self.paths[node])[:k]
            for rank, (token, log_prob) in enumerate(found):
                tokens[row, rank], log_probs[row, rank] = token, log_prob
        return Candidates(tokens, log_probs, np.exp(log_probs[:, 0]), log_probs > -np.inf)

    def _after(self, root: int, path: tuple[int, ...]) -> list[tuple[int, float]]:
        corpus = self.corpus
        found = corpus.looked_up.get((root, path))
        if found is None:
            text = int(corpus.owner[root])
            lookup = corpus.lookups[text]
            lookup.seek(root - int(corpus.start[text]) + 1)
            said = lookup.after(list(path), corpus.header.columns)
            found = corpus.looked_up[root, path] = [(token, math.log(probability)) for token, probability in said]
        return found


class _Drafting(MergedDraft):
    """Drafting at many roots of a corpus at once."""

    def __init__(self, corpus: TraceTable, roots: IntArray) -> None:
        self.recorded, self.hindsight = _Model(corpus, roots), _Lookup(corpus, roots)
        super().__init__(cast("Draft", self.recorded))
        self.lookup = cast("LookupDraft", self.hindsight)
        self.greedy, self.length = corpus.greedy, 0
        self._new_round()


def tabulate(corpus: TraceTable, parameters: TreeParameters, roots: IntArray | None = None) -> Outcomes:
    """The outcome of rounds with these parameters.

    Args:
        corpus: the texts.
        parameters: the choice; where the limit is near it is capped, as in any round.
        roots: positions in `corpus.tokens`; all roots if None, `int64[n]`.

    Raises:
        UnrecordedError: the trace does not cover a tree.
    """
    roots = corpus.roots if roots is None else roots
    most = np.minimum(corpus.deepest(roots), parameters.max_depth)
    parts: list[tuple[IntArray, Outcomes]] = []
    for depth in np.unique(most).tolist():
        where = np.flatnonzero(most == depth)
        for first in range(0, len(where), _TOGETHER):
            chunk = where[first : first + _TOGETHER]
            parts.append((chunk, _grow(corpus, roots[chunk], parameters.capped(depth))))
    order = np.argsort(np.concatenate([chunk for chunk, _ in parts]))
    levels = max(part.deeper_rows.shape[1] for _, part in parts)
    return Outcomes(
        **{
            field.name: np.concatenate([_padded(getattr(part, field.name), levels) for _, part in parts])[order]
            for field in fields(Outcomes)
        }
    )


def _padded(values: IntArray, levels: int) -> IntArray:
    """Rows of levels filled up with zeros; anything else as it is."""
    return values if values.ndim == 1 else np.pad(values, ((0, 0), (0, levels - values.shape[1])))


def _grow(corpus: TraceTable, roots: IntArray, parameters: TreeParameters) -> Outcomes:
    trees = len(roots)
    drafting = _Drafting(corpus, roots)
    expand = cast("Expand[TokenForest]", drafting.expander(parameters))
    forest = grow(TokenForest(corpus.tokens[roots]), parameters, expand)
    kept = forest.likeliest(parameters.node_budget)
    owner, depth = forest.owner[kept], forest.depth[kept]
    right = kept[_right(corpus, roots, forest)[kept] & (depth > 0)]  # the accepted path: what is kept is connected
    accepted = np.bincount(forest.owner[right], minlength=trees)
    deepest = np.zeros(trees, np.int64)
    np.maximum.at(deepest, owner, depth)
    rows = drafting.recorded.rows
    levels = np.stack(rows[1:], axis=1) if len(rows) > 1 else np.zeros((trees, 0), np.int64)
    return Outcomes(
        accepted=accepted,
        drafted=np.bincount(owner, minlength=trees) - 1,
        depth=deepest,
        asked=rows[0] > 0 if rows else np.zeros(trees, np.bool_),
        deeper_rows=levels,
        lookup_nodes=drafting.hindsight.nodes,
        kept=_kept(corpus, drafting.recorded.walk.rows, forest, right),
    )


def _right(corpus: TraceTable, roots: IntArray, forest: TokenForest) -> BoolArray:
    """Which nodes lie on the target's path, `bool[nodes]`."""
    where = roots[forest.owner] + forest.depth
    inside = where < corpus.end[corpus.owner[roots]][forest.owner]
    right: BoolArray = inside & (forest.token == corpus.tokens[np.where(inside, where, 0)])
    for depth in range(1, int(forest.depth[-1]) + 1):  # nodes stand level by level
        level = np.flatnonzero(forest.depth == depth)
        right[level] &= right[forest.parent[level]]
    return right


def _kept(corpus: TraceTable, rows: IntArray, forest: TokenForest, right: IntArray) -> IntArray:
    """Accepted nodes that the draft need not read again, see `RecordedDraft.kept`, `int64[trees]`."""
    trees = int(forest.owner.max()) + 1
    if corpus.header.draft_kind != "causal":
        return np.zeros(trees, np.int64)
    expanded = right[right < len(rows)]
    return np.bincount(forest.owner[expanded[rows[expanded] >= 0]], minlength=trees)

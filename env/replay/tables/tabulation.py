"""Outcomes of tree parameters at every position of many recorded texts at once.

The outcome of a round is a function of its root's position and of the tree parameters, so a table of it answers for
every episode that ever passes there. The trees of all positions grow together, by the one growth rule.

Parameters that differ only in thresholds share one growth: a stricter tree is a more generous one without some nodes. A
node that stricter thresholds exclude has less reach than every node that they let in. So it displaces none of these
from the frontier, and everything below it is excluded as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import numpy as np

from specgym.env.common.arrays import BoolArray, FloatArray, IntArray
from specgym.env.common.errors import UnrecordedError
from specgym.env.drafts.lookup import LookupDraft
from specgym.env.drafts.merged import MergedDraft
from specgym.env.replay.tables.outcomes import FACTS, Outcomes, Rows
from specgym.env.replay.tables.trace_table import TraceTable
from specgym.env.replay.traces.recorded_trees import RecordedDraft
from specgym.env.tree.growth import Candidates, Expand, grow
from specgym.env.tree.parameters import TreeParameters
from specgym.env.tree.tree import NO_NODES, TokenForest

_TOGETHER = 4096  # trees that grow together: their arrays stay within some tens of MiB
_GENEROUS = {
    "base_depth": max,
    "max_depth": max,
    "early_stop": min,
    "deep_expand": min,
    "min_reach": min,
    "min_level_reach": min,
}  # thresholds, and which of two values grows the larger tree


def tabulate(table: TraceTable, parameters: TreeParameters, roots: IntArray | None = None) -> Outcomes:
    """Returns the outcome of rounds with these parameters.

    Args:
        table: the texts.
        parameters: the choice; where the limit is near it is capped, as in any round.
        roots: positions in `table.tokens`; all roots if None, `int64[n]`.

    Raises:
        UnrecordedError: the trace does not cover a tree.
    """
    return tabulate_family(table, [parameters], roots)[0]


def tabulate_family(
    table: TraceTable, family: Sequence[TreeParameters], roots: IntArray | None = None
) -> list[Outcomes]:
    """Returns `tabulate` of each set of parameters of a family, see `families`. Raises as `tabulate` does."""
    roots = table.roots if roots is None else roots
    generous = _generous(family)
    most = np.minimum(table.deepest(roots), generous.max_depth)
    parts: list[tuple[IntArray, list[Outcomes]]] = []
    try:
        for depth in np.unique(most).tolist():
            where = np.flatnonzero(most == depth)
            for begin in range(0, len(where), _TOGETHER):
                chunk = where[begin : begin + _TOGETHER]
                growth = _Growth(table, roots[chunk], generous.capped(depth), generous.max_depth)
                parts.append((chunk, [growth.outcomes(parameters.capped(depth)) for parameters in family]))
    except UnrecordedError:
        if len(family) == 1:
            raise
        return [tabulate(table, parameters, roots) for parameters in family]  # each may be covered by itself
    order = np.argsort(np.concatenate([chunk for chunk, _ in parts]))
    rounds = zip(*(outcomes for _, outcomes in parts), strict=True)  # by choice: the outcomes of each chunk
    return [Outcomes._make(np.concatenate(column)[order] for column in zip(*chunks, strict=True)) for chunks in rounds]


def tabulate_pairs(table: TraceTable, choices: Sequence[TreeParameters], roots: IntArray, levels: int) -> Rows:
    """Returns the outcome of each choice at its own root, `roots[n]`, see `Outcomes.rows`. Raises as `tabulate`."""
    rows = np.empty((len(choices), FACTS + levels), np.int32)
    for pairs in map(np.array, families(choices)):
        family = list(dict.fromkeys(choices[pair] for pair in pairs))
        numbers = np.array([family.index(choices[pair]) for pair in pairs])
        places, where = np.unique(roots[pairs], return_inverse=True)
        try:
            every = [outcomes.rows(levels) for outcomes in tabulate_family(table, family, places)]
            rows[pairs] = np.stack(every)[numbers, where]
        except UnrecordedError:  # perhaps of a choice at the root of another one
            for pair in pairs:
                rows[pair] = tabulate(table, choices[pair], roots[pair : pair + 1]).rows(levels)
    return rows


def families(choices: Sequence[TreeParameters]) -> list[list[int]]:
    """Returns numbers of choices in groups that one growth serves."""
    groups: dict[Any, list[int]] = {}
    for number, parameters in enumerate(choices):
        groups.setdefault(_neutral(parameters), []).append(number)
    return list(groups.values())


def _neutral(parameters: TreeParameters) -> TreeParameters | None:
    """The parameters without thresholds; None where nothing is drafted."""
    neutral: dict[str, Any] = {**dict.fromkeys(_GENEROUS, 0.0), "base_depth": 1, "max_depth": 1, "node_budget": 1}
    return replace(parameters, **neutral) if parameters.speculates else None


def _generous(family: Sequence[TreeParameters]) -> TreeParameters:
    """Parameters whose tree holds those of the whole family."""
    bounds: dict[str, Any] = {name: pick(getattr(one, name) for one in family) for name, pick in _GENEROUS.items()}
    return replace(family[0], **bounds)


class _Lookup:
    """Prompt lookup after nodes of many trees. Its answers are kept for other choices."""

    def __init__(self, table: TraceTable, roots: IntArray) -> None:
        self.table, self.roots = table, roots
        self.paths: list[tuple[int, ...]] = []  # tokens from below the root to each node

    def expand(self, forest: TokenForest, nodes: IntArray, k: int) -> Candidates:
        """See `LookupDraft.expand`."""
        for node in range(len(self.paths), len(forest)):
            parent = int(forest.parent[node])
            self.paths.append(() if parent < 0 else (*self.paths[parent], int(forest.token[node])))
        tokens, log_probs = np.zeros((len(nodes), k), np.int64), np.full((len(nodes), k), -np.inf)
        for row, node in enumerate(nodes.tolist()):
            candidates = self.table.looked_up(int(self.roots[forest.owner[node]]), self.paths[node])[:k]
            for rank, (token, log_prob) in enumerate(candidates):
                tokens[row, rank], log_probs[row, rank] = token, log_prob
        return Candidates(tokens, log_probs, np.exp(log_probs[:, 0]), log_probs > -np.inf)


class _ForestDraft(MergedDraft):
    """Drafts at many roots of a table at once, and notes which nodes were expanded."""

    def __init__(self, table: TraceTable, roots: IntArray) -> None:
        model = RecordedDraft(table.trees, table.header.draft_kind, table.calibrator)
        model.seek(roots)
        super().__init__(model)
        self.lookup = cast("LookupDraft", _Lookup(table, roots))
        self.greedy, self.length = table.greedy, 0
        self.expanded: list[IntArray] = []
        self._new_round()

    def _expand(self, parameters: TreeParameters, tree: Any, nodes: IntArray, k: int) -> Candidates:
        self.expanded.append(nodes)
        return super()._expand(parameters, tree, nodes, k)


class _Growth:
    """Trees at many roots, grown once, and the outcomes of every stricter choice.

    Args:
        table: the texts.
        roots: positions in `table.tokens`, `int64[trees]`.
        generous: the parameters that the trees grow by.
        levels: most levels of any tree; outcomes are padded to so many.
    """

    def __init__(self, table: TraceTable, roots: IntArray, generous: TreeParameters, levels: int) -> None:
        self.table, self.roots, self.levels = table, roots, levels
        draft = _ForestDraft(table, roots)
        expand = cast("Expand[TokenForest]", draft.expander(generous))
        self.forest = forest = grow(TokenForest(table.tokens[roots]), generous, expand)
        self.bounds = np.searchsorted(forest.depth, np.arange(levels + 2)).tolist()  # where each level begins
        self.expanded: BoolArray = np.zeros(len(forest), np.bool_)
        self.expanded[np.concatenate([NO_NODES, *draft.expanded])] = True
        self.reach: FloatArray = forest.reach
        self.right: IntArray = np.flatnonzero(self._on_path() & (forest.depth > 0))

    def outcomes(self, parameters: TreeParameters) -> Outcomes:
        """Returns the outcomes of parameters that are nowhere more generous than those of the growth."""
        forest, trees = self.forest, len(self.roots)
        present, expanded = self._let_in(parameters)
        nodes = np.bincount(forest.owner[present], minlength=trees)
        budget = parameters.node_budget + 1
        if (nodes > budget).any():
            present = self._likeliest(present, budget)
        right = self.right[present[self.right]]  # a connected path: reach never rises along it
        deepest = np.zeros(trees, np.int64)
        verified = np.flatnonzero(present)
        deepest[forest.owner[verified]] = forest.depth[verified]  # nodes stand level by level: the last one wins
        by_model = expanded[~forest.from_lookup[expanded]] if parameters.source != "lookup" else expanded[:0]
        # [trees, levels]
        rows = np.bincount(forest.owner[by_model] * self.levels + forest.depth[by_model], minlength=trees * self.levels)
        rows = rows.reshape(trees, self.levels)
        looked_up = expanded if parameters.source != "model" else expanded[:0]
        return Outcomes(
            accepted=np.bincount(forest.owner[right], minlength=trees),
            drafted=np.minimum(nodes, budget) - 1,
            depth=deepest,
            asked=rows[:, 0] > 0 if self.levels else np.zeros(trees, np.bool_),
            lookup_nodes=np.bincount(forest.owner[looked_up], minlength=trees),
            kept=self._kept(right, by_model),
            deeper_rows=rows[:, 1:],
        )

    def _let_in(self, parameters: TreeParameters) -> tuple[BoolArray, IntArray]:
        """Which nodes the parameters' own trees have, `bool[nodes]`, and which of these they expand, `int64[n]`."""
        forest, present, expanded = self.forest, np.zeros(len(self.forest), np.bool_), list[IntArray]()
        present[: len(self.roots)] = True
        for depth in range(parameters.max_depth if parameters.speculates else 0):
            begin, end, after = self.bounds[depth : depth + 3]
            level = begin + np.flatnonzero(present[begin:end] & self.expanded[begin:end])
            if depth > 0:
                level = self._likely(level, parameters, depth)
            if not len(level):
                break
            expanded.append(level)
            grown = np.zeros(end - begin, np.bool_)
            grown[level - begin] = True
            present[end:after] = grown[forest.parent[end:after] - begin]
            if parameters.min_reach > 0:
                present[end:after] &= self.reach[end:after] >= parameters.min_reach
        return present, np.concatenate([NO_NODES, *expanded])

    def _likely(self, level: IntArray, parameters: TreeParameters, depth: int) -> IntArray:
        """Nodes of a level that the parameters' thresholds let expand, see `grow`."""
        reach = self.reach[level]
        likely = reach >= parameters.early_stop
        if depth >= parameters.base_depth:
            likely &= reach > parameters.deep_expand
        level, reach = level[likely], reach[likely]
        if parameters.min_level_reach > 0:
            owner = self.forest.owner[level]
            level = level[np.bincount(owner, reach)[owner] >= parameters.min_level_reach]
        return level

    @cached_property
    def _by_reach(self) -> tuple[IntArray, IntArray]:
        """Nodes tree by tree, the likeliest of each first, `int64[nodes]`, and where each tree begins there."""
        forest = self.forest
        order = np.lexsort((-forest.log_reach, forest.owner))
        return order, np.searchsorted(forest.owner[order], np.arange(len(self.roots)))

    def _likeliest(self, present: BoolArray, most: int) -> BoolArray:
        """As many nodes of each tree as may be verified, see `TokenForest.likeliest`, `bool[nodes]`."""
        order, begin = self._by_reach
        chosen = present[order]
        place = np.cumsum(chosen)
        before = np.where(begin > 0, place[begin - 1], 0)  # nodes of the trees before each tree
        chosen &= place - before[self.forest.owner[order]] <= most
        kept = np.zeros_like(present)
        kept[order] = chosen
        return kept

    def _on_path(self) -> BoolArray:
        """Which nodes lie on the target's path, `bool[nodes]`."""
        table, forest = self.table, self.forest
        where = self.roots[forest.owner] + forest.depth
        inside = where < table.end[table.owner[self.roots]][forest.owner]
        right: BoolArray = inside & (forest.token == table.tokens[np.where(inside, where, 0)])
        for begin, end in zip(self.bounds[1:-1], self.bounds[2:], strict=True):
            right[begin:end] &= right[forest.parent[begin:end]]
        return right

    def _kept(self, right: IntArray, by_model: IntArray) -> IntArray:
        """Accepted nodes that the draft need not read again, see `RecordedDraft.kept`, `int64[trees]`."""
        if self.table.header.draft_kind != "causal":
            return np.zeros(len(self.roots), np.int64)
        read = np.zeros(len(self.forest), np.bool_)
        read[by_model] = True
        return np.bincount(self.forest.owner[right[read[right]]], minlength=len(self.roots))

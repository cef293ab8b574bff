"""Recording what a draft would guess anywhere along a text, deep and wide enough for every tree that may be asked for.

A round's tree is a function of the text before it and of its parameters. So the recording holds, at every position,
the expansions of all nodes that any parameters within its rule could expand: then replay never has to guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from specgym.env.common.arrays import FloatArray, IntArray
from specgym.env.common.errors import LimitError, ParameterError
from specgym.env.drafts.base import Draft
from specgym.env.drafts.merged import either, recalibrated
from specgym.env.models.target import TargetModel
from specgym.env.replay.recording.draft_forest import DraftForest, draft_forest
from specgym.env.replay.traces.recorded_trees import RecordedLookup, RecordedTrees
from specgym.env.replay.traces.whole_text_lookup import WholeTextLookup
from specgym.env.tree.growth import Candidates, grow
from specgym.env.tree.parameters import TreeParameters
from specgym.env.tree.sampling import SamplingSettings, TokenChooser
from specgym.env.tree.tree import TokenForest

_UNBOUNDED = 2**31  # more than any level or tree holds


@dataclass(frozen=True)
class SupersetRule:
    """Which expansions are recorded at a position.

    Every tree is covered whose `early_stop` is `floor` or more, `max_branch` no more than `columns` and `max_depth` no
    more than `max_depth`, from whatever source, calibrated or not; and the trees of `fixed`, whose source is the
    model and whose probabilities are calibrated, unless they ask for others.

    Raises:
        ParameterError: a value outside its range.
    """

    floor: float = 0.05
    """least reach, by whichever probability is higher, of a node that is expanded [probability]"""
    max_depth: int = 10
    """depth of the deepest candidates [tokens]"""
    columns: int = 4
    """candidates of every node that are kept [nodes]"""
    fixed: tuple[TreeParameters, ...] = ()
    """trees that are covered besides, however unlikely their nodes"""

    def __post_init__(self) -> None:
        if not 0 < self.floor <= 1:
            raise ParameterError(f"floor must be over 0 and at most 1; got {self.floor}.")
        if self.max_depth < 1 or self.columns < 2:
            raise ParameterError(
                f"max_depth must be 1 or more and columns 2 or more; got {self.max_depth} and {self.columns}."
            )
        for tree in self.fixed:
            if tree.max_branch > self.columns or tree.source != "model":
                raise ParameterError(
                    f"Static trees need max_branch of {self.columns} or less and source=model; got {tree}."
                )

    @property
    def parameters(self) -> TreeParameters:
        """The tree of all that is likely enough."""
        return TreeParameters(
            base_depth=self.max_depth,
            max_depth=self.max_depth,
            min_branch=self.columns,
            mid_branch=self.columns,
            max_branch=self.columns,
            early_stop=self.floor,
            frontier_width=_UNBOUNDED,
            node_budget=_UNBOUNDED,
        )


class Recorder:
    """Records texts of a pair.

    Args:
        target: the target; its request under way is lost.
        draft: a draft model, feature or causal; likewise.
        rule: what to record.
        batch: positions whose trees grow together.

    Raises:
        PairError: the draft is prompt lookup, which needs no recording.
    """

    def __init__(self, target: TargetModel, draft: Draft, rule: SupersetRule | None = None, batch: int = 32) -> None:
        self.target, self.draft, self.batch = target, draft, batch
        self.rule = SupersetRule() if rule is None else rule
        self.forest = draft_forest(draft)

    @torch.inference_mode()
    def record(
        self,
        tokens: Sequence[int],
        start: int,
        settings: SamplingSettings,
        progress: Callable[[int], None] = lambda positions: None,
        features: torch.Tensor | None = None,
    ) -> RecordedTrees:
        """What the draft guesses after every token of an answer but the last one.

        Args:
            tokens: prompt and answer [token ids].
            start: length of the prompt [tokens].
            settings: how the answer was sampled.
            progress: told how many positions are done since it was last told.
            features: the target's hidden states of all tokens but the last, those that the draft feeds on, `[tokens -
                1, width]`; if None, the target reads the text for them, where the draft feeds on any.

        Raises:
            LimitError: the text is too long for the pair.
            NumericalError: a model returned NaN.
        """
        self._check_length(len(tokens))
        if features is None and self.draft.feature_layers is not None:
            features = self._read(tokens[:-1])
        chooser = TokenChooser(settings, self.target.vocabulary, self.target.device)
        self.forest.read(tokens, features, chooser)
        table, lookup = RecordedTrees(self.rule.columns), WholeTextLookup(tokens)
        for first in range(start, len(tokens) - 1, self.batch):
            positions = np.arange(first, min(first + self.batch, len(tokens) - 1))
            self._record(table, np.asarray(tokens)[positions], positions, settings.greedy, lookup)
            progress(len(positions))
        return table.by_position()

    def _read(self, tokens: Sequence[int]) -> torch.Tensor | None:
        self.target.cache.reset()
        self.target.show_features(self.draft.feature_layers)
        self.target.extend(tokens)
        return self.target.features

    def _record(
        self, table: RecordedTrees, roots: IntArray, positions: IntArray, greedy: bool, lookup: WholeTextLookup
    ) -> None:
        batch = _Batch(table, self.forest, positions)
        likely = _Likeliest(_GrowingWalk(batch), self.draft, greedy, lookup)
        grow(TokenForest(roots), self.rule.parameters, likely)
        for tree in self.rule.fixed:
            grow(
                TokenForest(roots), tree, _Offers(_GrowingWalk(batch), self.draft if tree.calibrated else None, greedy)
            )

    def _check_length(self, tokens: int) -> None:
        limits = [model.context_limit for model in (self.target, self.draft) if model.context_limit is not None]
        most = min(limits) - self.rule.max_depth
        if tokens > most:
            raise LimitError(
                f"A text of {tokens} tokens is too long to record: with branches of {self.rule.max_depth} tokens after "
                f"it this pair reads at most {most}."
            )


class _Batch:
    """Positions whose trees grow together, and what their rows are called among the draft's.

    Args:
        table: where rows are added, those of this batch behind all others.
        forest: the draft.
        positions: of the roots, `int64[trees]`.
    """

    def __init__(self, table: RecordedTrees, forest: DraftForest, positions: IntArray) -> None:
        self.table, self.forest, self.positions = table, forest, positions
        self.first = len(table)
        self.numbers: IntArray = np.empty(0, np.int64)  # of the table's rows from `first` on; -1 for roots

    def roots(self, trees: IntArray) -> IntArray:
        """Asks the draft after the roots of trees: all of them, since it forgets all others."""
        positions = self.positions[trees]
        found = self.forest.roots(positions, self.table.columns)
        self.numbers = np.full(len(trees), -1, np.int64)
        return self.table.append(found, self.numbers, np.zeros_like(trees), positions)

    def grow(self, forest: TokenForest, nodes: IntArray, above: IntArray, rank: IntArray) -> IntArray:
        """Asks the draft after nodes whose parents are in the table."""
        positions, parents = self.positions[forest.owner[nodes]], self.numbers[above - self.first]
        grown = int(self.numbers.max()) + 1
        found = self.forest.grow(forest.token[nodes], positions, forest.depth[nodes], parents, self.table.columns)
        self.numbers = np.concatenate([self.numbers, np.arange(grown, grown + len(nodes))])
        return self.table.append(found, above, rank, positions)


class _GrowingWalk(RecordedLookup):
    """A walk that asks the draft for what the table lacks."""

    def __init__(self, batch: _Batch) -> None:
        super().__init__(batch.table, batch.positions)
        self.batch = batch

    def supply(self, forest: TokenForest, nodes: IntArray, above: IntArray, rank: IntArray) -> IntArray:
        """Rows of nodes that the table lacks."""
        if forest.depth[nodes[0]] == 0:
            return self.batch.roots(forest.owner[nodes])
        return self.batch.grow(forest, nodes, above, rank)


class _Offers:
    """What live drafting would be offered, calibrated if the draft is given and has a calibrator."""

    def __init__(self, walk: RecordedLookup, draft: Draft | None, greedy: bool) -> None:
        self.walk, self.greedy = walk, greedy
        self.calibrator = None if draft is None else draft.calibrator

    def __call__(self, forest: TokenForest, nodes: IntArray, k: int) -> Candidates:
        """See `Expand`."""
        if self.calibrator is None:
            return self.walk(forest, nodes, k)
        found = self.walk(forest, nodes, max(k, 2))  # the calibrator looks at how far the first one leads
        depth = int(forest.depth[nodes[0]]) + 1
        return recalibrated(found, self.calibrator.calibrate(found.log_probs, depth, self.greedy), k)


class _Likeliest:
    """Candidates with the highest probability that any source gives them, so that reach is never underrated."""

    def __init__(self, walk: RecordedLookup, draft: Draft, greedy: bool, lookup: WholeTextLookup) -> None:
        self.walk, self.calibrator, self.greedy, self.lookup = walk, draft.calibrator, greedy, lookup
        self.paths: list[list[int]] = []  # tokens from below the root to each node

    def __call__(self, forest: TokenForest, nodes: IntArray, k: int) -> Candidates:
        """See `Expand`."""
        found = self.walk(forest, nodes, k)
        log_probs = found.log_probs
        if self.calibrator is not None:
            worth = self.calibrator.calibrate(log_probs, int(forest.depth[nodes[0]]) + 1, self.greedy)
            log_probs = np.maximum(log_probs, worth)
        for node in range(len(self.paths), len(forest)):
            parent = int(forest.parent[node])
            self.paths.append([] if parent < 0 else [*self.paths[parent], int(forest.token[node])])
        return Candidates(found.tokens, either(log_probs, self._support(forest, nodes, found)), found.confidence)

    def _support(self, forest: TokenForest, nodes: IntArray, found: Candidates) -> FloatArray:
        """Prompt lookup's probability of each candidate, 0 of what it does not offer."""
        columns = found.tokens.shape[1]
        support = np.zeros((len(nodes), columns))
        for row, node in enumerate(nodes.tolist()):
            self.lookup.seek(int(self.walk.positions[forest.owner[node]]) + 1)
            for token, probability in self.lookup.after(self.paths[node], columns):
                support[row, found.tokens[row] == token] = probability
        return support

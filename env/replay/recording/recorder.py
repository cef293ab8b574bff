"""Records a draft's guesses along a text, deep and wide enough for every tree that may be requested.

A round's tree is a function of the text before it and of its parameters. So a recording holds, at every position, the
expansions of all nodes that any parameters within its rule could expand. Replay then never has to approximate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from specgym.env.common.arrays import FloatArray, IntArray
from specgym.env.common.errors import LimitError, ParameterError
from specgym.env.drafts.base import Draft
from specgym.env.drafts.calibrator import Calibrator
from specgym.env.drafts.merged import either, recalibrated
from specgym.env.models.target import TargetModel
from specgym.env.replay.recording.draft_forest import DraftForest, draft_forest
from specgym.env.replay.traces.recorded_trees import RecordedLookup, RecordedTrees, WholeTextLookup
from specgym.env.tree.growth import Candidates, Expand, grow
from specgym.env.tree.parameters import TreeParameters
from specgym.env.tree.sampling import SamplingSettings, TokenChooser
from specgym.env.tree.tree import NO_NODES, TokenForest

_UNBOUNDED = 2**31  # more than any level or tree holds


@dataclass(frozen=True)
class SupersetRule:
    """Which expansions are recorded at a position.

    A tree is covered if its `early_stop` is at least `floor`, its `max_branch` at most `columns` and its `max_depth` at
    most `max_depth`, whatever its source and whether calibrated or not. The trees of `fixed` are covered as well, with
    the model as their source, calibrated or not as they say.

    Raises:
        ParameterError: a value outside its range.
    """

    floor: float = 0.05
    """least reach of an expanded node, by the higher of its probabilities [probability]"""
    max_depth: int = 10
    """depth of the deepest candidates [tokens]"""
    columns: int = 4
    """candidates kept of every node [nodes]"""
    fixed: tuple[TreeParameters, ...] = ()
    """further trees that are covered, however unlikely their nodes"""

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
        """Parameters of the tree that holds every node above the floor."""
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
        target: the target; its current request is lost.
        draft: a draft model, feature or causal; its current request is lost.
        rule: for the guesses that are recorded.
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
        """Returns the draft's guesses after every token of an answer but the last one.

        Args:
            tokens: prompt and answer [token ids].
            start: length of the prompt [tokens].
            settings: how the answer was sampled.
            progress: called with the number of further positions that are done.
            features: the target's hidden states of all tokens but the last, for a feature draft, `[tokens - 1, width]`;
                if None, the target reads the text to compute them.

        Raises:
            LimitError: the text is too long for the pair.
            NumericalError: a model returned NaN.
        """
        self._check_length(len(tokens))
        if features is None and self.draft.feature_layers is not None:
            self.target.start()
            self.target.show_features(self.draft.feature_layers)
            self.target.extend(tokens[:-1])
            features = self.target.features
        chooser = TokenChooser(settings, self.target.vocabulary, self.target.device)
        self.forest.read(tokens, features, chooser)
        table, lookup = RecordedTrees.empty(self.rule.columns), WholeTextLookup(tokens)
        for first in range(start, len(tokens) - 1, self.batch):
            positions = np.arange(first, min(first + self.batch, len(tokens) - 1))
            self._record(table, np.asarray(tokens)[positions], positions, settings.greedy, lookup)
            progress(len(positions))
        return table.by_position()

    def _record(
        self, table: RecordedTrees, roots: IntArray, positions: IntArray, greedy: bool, lookup: WholeTextLookup
    ) -> None:
        recorded, calibrator = _GrowingLookup(table, self.forest, positions), self.draft.calibrator
        grow(TokenForest(roots), self.rule.parameters, _Likeliest(recorded, calibrator, greedy, lookup))
        for tree in self.rule.fixed:
            recorded.restart()
            as_live = _calibrated(recorded, calibrator, greedy) if calibrator and tree.calibrated else recorded
            grow(TokenForest(roots), tree, as_live)

    def _check_length(self, tokens: int) -> None:
        limits = [model.context_limit for model in (self.target, self.draft) if model.context_limit is not None]
        most = min(limits) - self.rule.max_depth
        if tokens > most:
            raise LimitError(
                f"A text of {tokens} tokens is too long to record: with branches of {self.rule.max_depth} tokens after "
                f"it this pair reads at most {most}."
            )


class _GrowingLookup(RecordedLookup):
    """A lookup in the table that lets the draft expand the nodes that the table lacks.

    Args:
        table: where new rows are added, after all others.
        forest: the draft.
        positions: of the roots of trees that grow together, `int64[trees]`.
    """

    def __init__(self, table: RecordedTrees, forest: DraftForest, positions: IntArray) -> None:
        super().__init__(table, positions)
        self.forest, self.first = forest, len(table)
        self.numbers: IntArray = NO_NODES  # the draft's, of the table's rows from `first` on; -1 for roots

    def restart(self) -> None:
        """Prepares for another growth of trees at the same roots."""
        self.rows = NO_NODES

    def supply(self, forest: TokenForest, nodes: IntArray, above: IntArray, rank: IntArray) -> IntArray:
        """Lets the draft expand nodes that the table lacks. Returns their rows."""
        positions, columns = self.positions[forest.owner[nodes]], self.table.columns
        if forest.depth[nodes[0]] == 0:  # all roots, since the draft forgets all others
            candidates = self.forest.roots(positions, columns)
            self.numbers = np.full(len(nodes), -1, np.int64)
        else:
            parents, grown = self.numbers[above - self.first], int(self.numbers.max()) + 1
            candidates = self.forest.grow(forest.token[nodes], positions, forest.depth[nodes], parents, columns)
            self.numbers = np.concatenate([self.numbers, np.arange(grown, grown + len(nodes))])
        return self.table.append(candidates, above, rank, positions)


def _calibrated(recorded: RecordedLookup, calibrator: Calibrator, greedy: bool) -> Expand[TokenForest]:
    """Returns an `Expand` to candidates as live decoding calibrates them."""

    def expand(forest: TokenForest, nodes: IntArray, k: int) -> Candidates:
        candidates = recorded(forest, nodes, max(k, 2))  # calibration needs the lead of the first one
        depth = int(forest.depth[nodes[0]]) + 1
        return recalibrated(candidates, calibrator.calibrate(candidates.log_probs, depth, greedy), k)

    return expand


class _Likeliest:
    """Candidates with the highest probability that any source gives them, so that no reach is too low."""

    def __init__(
        self, recorded: RecordedLookup, calibrator: Calibrator | None, greedy: bool, lookup: WholeTextLookup
    ) -> None:
        self.recorded, self.calibrator, self.greedy, self.lookup = recorded, calibrator, greedy, lookup
        self.paths: list[list[int]] = []  # tokens from below the root to each node

    def __call__(self, forest: TokenForest, nodes: IntArray, k: int) -> Candidates:
        """See `Expand`."""
        candidates = self.recorded(forest, nodes, k)
        log_probs = candidates.log_probs
        if self.calibrator is not None:
            worth = self.calibrator.calibrate(log_probs, int(forest.depth[nodes[0]]) + 1, self.greedy)
            log_probs = np.maximum(log_probs, worth)
        for node in range(len(self.paths), len(forest)):
            parent = int(forest.parent[node])
            self.paths.append([] if parent < 0 else [*self.paths[parent], int(forest.token[node])])
        return Candidates(
            candidates.tokens, either(log_probs, self._support(forest, nodes, candidates)), candidates.confidence
        )

    def _support(self, forest: TokenForest, nodes: IntArray, candidates: Candidates) -> FloatArray:
        """Prompt lookup's probability of each candidate, 0 for candidates that it does not offer."""
        columns = candidates.tokens.shape[1]
        support = np.zeros((len(nodes), columns))
        for row, node in enumerate(nodes.tolist()):
            self.lookup.seek(int(self.recorded.positions[forest.owner[node]]) + 1)
            for token, probability in self.lookup.after(self.paths[node], columns):
                support[row, candidates.tokens[row] == token] = probability
        return support

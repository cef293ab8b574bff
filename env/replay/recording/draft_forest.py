"""A draft at many positions of a known text at once: forests of its guesses, grown with few large forwards.

What a draft says after a position depends on the text up to there and on nothing else, so the trees of many positions
can share one cache of the whole text: every row of a tree sees the text up to its own root, and its own branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from specgym.env.common.arrays import BoolArray, IntArray
from specgym.env.common.errors import PairError
from specgym.env.drafts.base import Draft
from specgym.env.drafts.causal import CausalDraft
from specgym.env.drafts.feature import FeatureDraft
from specgym.env.tree.growth import Candidates
from specgym.env.tree.sampling import TokenChooser


class DraftForest(Protocol):
    """Guesses after many positions of a text. Candidates come with their entropies."""

    def read(self, tokens: Sequence[int], features: torch.Tensor | None, chooser: TokenChooser) -> None:
        """Takes in a whole text.

        Args:
            tokens: the text.
            features: the target's hidden states at each token but the last, `[tokens - 1, width]`, if the draft needs
                them.
            chooser: the noise that candidates are ranked with.
        """

    def roots(self, roots: IntArray, k: int) -> Candidates:
        """The k best continuations after the text up to and including each position, `int64[n]`, 1 at least.

        Forgets all trees.
        """

    def grow(self, tokens: IntArray, roots: IntArray, depths: IntArray, parents: IntArray, k: int) -> Candidates:
        """The k best continuations after nodes of trees.

        Args:
            tokens: their tokens, `int64[n]`.
            roots: positions of the roots of their trees, `int64[n]`.
            depths: tokens below the root, `int64[n]`.
            parents: what number their parents were among all nodes given since `roots`, -1 for a root, `int64[n]`.
            k: candidates of a node.
        """


class _Branches:
    """Who stands above whom, among the rows of all trees."""

    def __init__(self) -> None:
        self.rows: BoolArray = np.zeros((0, 0), np.bool_)

    def add(self, parents: IntArray) -> BoolArray:
        """Adds rows; which of all rows, themselves included, each of them sees, `bool[added, rows]`."""
        old, added = len(self.rows), len(parents)
        rows = np.zeros((old + added, old + added), np.bool_)
        rows[:old, :old] = self.rows
        below = parents >= 0
        rows[old:, :old][below] = self.rows[parents[below]]
        rows[old:, old:] = np.eye(added, dtype=np.bool_)
        self.rows = rows
        return rows[old:]


def _visible(prefix: int, seen: IntArray, branches: BoolArray) -> BoolArray:
    """The first `seen` columns of the text, and the branch, `bool[rows, prefix + columns]`."""
    return np.concatenate([np.arange(prefix) < seen[:, None], branches], axis=1)


class FeatureForest:
    """See `DraftForest`; of a feature draft, whose request under way is lost."""

    def __init__(self, draft: FeatureDraft) -> None:
        self.draft = draft

    @torch.inference_mode()
    def read(self, tokens: Sequence[int], features: torch.Tensor | None, chooser: TokenChooser) -> None:
        """See `DraftForest.read`."""
        assert features is not None, "a feature draft needs the target's hidden states"
        draft, self.chooser = self.draft, chooser
        for cache in draft.caches:
            cache.reset()
        self.prefix = len(tokens) - 1
        before = draft.lean.reduce(features)
        # Row r holds token r + 1: what follows it is the guess at position r + 2.
        self.after, _ = draft.forward(np.array(tokens[1:]), before, np.arange(self.prefix), None, keep=0)

    @torch.inference_mode()
    def roots(self, roots: IntArray, k: int) -> Candidates:
        """See `DraftForest.roots`."""
        for cache in self.draft.caches:
            cache.keep(self.prefix)
        self.branches = _Branches()
        self.features = self.after.new_zeros(0, self.after.shape[1])
        after = self.draft.lean.head(self.after[torch.from_numpy(roots - 1)])
        return self._rank(after, roots + 1, k)

    @torch.inference_mode()
    def grow(self, tokens: IntArray, roots: IntArray, depths: IntArray, parents: IntArray, k: int) -> Candidates:
        """See `DraftForest.grow`."""
        # Of roots the features stand among those of the text, of nodes among those of the trees.
        both = torch.cat([self.after, self.features])
        where = np.where(parents < 0, roots - 1, self.prefix + parents)
        visible = _visible(self.prefix, roots, self.branches.add(parents))
        before = both[torch.from_numpy(where)]
        output, logits = self.draft.forward(tokens, before, roots - 1 + depths, visible, keep=len(tokens))
        self.features = torch.cat([self.features, output])
        return self._rank(logits, roots + depths + 1, k)

    def _rank(self, logits: torch.Tensor, positions: IntArray, k: int) -> Candidates:
        token_ids = self.draft.network.token_ids
        return self.chooser.rank(logits, positions.tolist(), k, token_ids, entropy=True)


class CausalForest:
    """See `DraftForest`; of a causal draft, whose request under way is lost."""

    def __init__(self, draft: CausalDraft) -> None:
        self.draft = draft

    @torch.inference_mode()
    def read(self, tokens: Sequence[int], features: torch.Tensor | None, chooser: TokenChooser) -> None:
        """See `DraftForest.read`."""
        self.chooser, self.prefix = chooser, len(tokens)
        self.draft.model.cache.reset()
        self.after = self.draft.model.extend_all(tokens)

    @torch.inference_mode()
    def roots(self, roots: IntArray, k: int) -> Candidates:
        """See `DraftForest.roots`."""
        self.draft.model.cache.keep_path(self.prefix, np.empty(0, np.int64))
        self.branches = _Branches()
        return self._rank(self.after[torch.from_numpy(roots)], roots + 1, k)

    @torch.inference_mode()
    def grow(self, tokens: IntArray, roots: IntArray, depths: IntArray, parents: IntArray, k: int) -> Candidates:
        """See `DraftForest.grow`."""
        visible = _visible(self.prefix, roots + 1, self.branches.add(parents))
        logits = self.draft.model.extend_tree(tokens, roots + depths, visible)
        return self._rank(logits, roots + depths + 1, k)

    def _rank(self, logits: torch.Tensor, positions: IntArray, k: int) -> Candidates:
        return self.chooser.rank(logits[:, : self.draft.vocabulary], positions.tolist(), k, entropy=True)


def draft_forest(draft: Draft) -> DraftForest:
    """The forest of a draft.

    Raises:
        PairError: the draft is of a kind that has none: prompt lookup needs none.
    """
    if isinstance(draft, FeatureDraft):
        return FeatureForest(draft)
    if isinstance(draft, CausalDraft):
        return CausalForest(draft)
    raise PairError(f"Expected a draft model to record, feature or causal; got a draft of kind {draft.kind!r}.")

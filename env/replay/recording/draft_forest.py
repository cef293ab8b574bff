"""A draft at many positions of a known text at once: forests of its guesses, grown with few large forwards.

A draft's guess after a position depends only on the text up to there. So the trees of many positions can share one
cache of the whole text. Every row of a tree sees the text up to its own root, and its own branch.
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
    """Guesses after many positions of a text. Candidates have entropies."""

    prefix: int
    """columns of the cache that hold the text"""
    branches: BoolArray
    """which rows of all trees each of them sees, itself included, `bool[rows, rows]`"""

    def read(self, tokens: Sequence[int], features: torch.Tensor | None, chooser: TokenChooser) -> None:
        """Reads a whole text.

        Args:
            tokens: the text.
            features: the target's hidden states at each token but the last, `[tokens - 1, width]`, for a feature draft.
            chooser: the noise that candidates are ranked with.
        """

    def roots(self, roots: IntArray, k: int) -> Candidates:
        """Returns the k best continuations after the text up to and including each position, and forgets all trees.

        Args:
            roots: positions, at least 1, `int64[n]`.
            k: candidates of a root.
        """

    def grow(self, tokens: IntArray, roots: IntArray, depths: IntArray, parents: IntArray, k: int) -> Candidates:
        """Returns the k best continuations after nodes of trees.

        Args:
            tokens: their tokens, `int64[n]`.
            roots: positions of the roots of their trees, `int64[n]`.
            depths: tokens below the root, `int64[n]`.
            parents: numbers of their parents among all nodes given since `roots`, -1 for a root, `int64[n]`.
            k: candidates of a node.
        """

    def _add(self, parents: IntArray, seen: IntArray) -> BoolArray:
        """Adds rows with these parents, each of which sees the first `seen` columns of the text and its own branch.

        Returns:
            The columns that each of them sees, `bool[added, prefix + rows]`.
        """
        old, added, below = len(self.branches), len(parents), parents >= 0
        self.branches = np.pad(self.branches, ((0, added), (0, added)))
        self.branches[old:][below] = self.branches[parents[below]]
        np.fill_diagonal(self.branches, True)
        return np.concatenate([np.arange(self.prefix) < seen[:, None], self.branches[old:]], axis=1)


class FeatureForest(DraftForest):
    """The `DraftForest` of a feature draft, whose current request is lost."""

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
        # Row r holds token r + 1; the guess after it is for position r + 2.
        self.after, _ = draft.forward(np.array(tokens[1:]), before, np.arange(self.prefix), None, keep=0)

    @torch.inference_mode()
    def roots(self, roots: IntArray, k: int) -> Candidates:
        """See `DraftForest.roots`."""
        for cache in self.draft.caches:
            cache.keep(self.prefix)
        self.branches = np.zeros((0, 0), np.bool_)
        self.features = self.after.new_zeros(0, self.after.shape[1])
        after = self.draft.lean.head(self.after[torch.from_numpy(roots - 1)])
        return self._rank(after, roots + 1, k)

    @torch.inference_mode()
    def grow(self, tokens: IntArray, roots: IntArray, depths: IntArray, parents: IntArray, k: int) -> Candidates:
        """See `DraftForest.grow`."""
        # Features of roots are among those of the text, features of nodes among those of the trees.
        both = torch.cat([self.after, self.features])
        where = np.where(parents < 0, roots - 1, self.prefix + parents)
        visible, before = self._add(parents, roots), both[torch.from_numpy(where)]
        output, logits = self.draft.forward(tokens, before, roots - 1 + depths, visible, keep=len(tokens))
        self.features = torch.cat([self.features, output])
        return self._rank(logits, roots + depths + 1, k)

    def _rank(self, logits: torch.Tensor, positions: IntArray, k: int) -> Candidates:
        return self.chooser.rank(logits, positions.tolist(), k, self.draft.network.token_ids, entropy=True)


class CausalForest(DraftForest):
    """The `DraftForest` of a causal draft, whose current request is lost."""

    def __init__(self, draft: CausalDraft) -> None:
        self.draft = draft

    @torch.inference_mode()
    def read(self, tokens: Sequence[int], features: torch.Tensor | None, chooser: TokenChooser) -> None:
        """See `DraftForest.read`."""
        self.chooser, self.prefix = chooser, len(tokens)
        self.draft.model.start()
        self.after = self.draft.model.extend_all(self.draft.known(tokens))

    @torch.inference_mode()
    def roots(self, roots: IntArray, k: int) -> Candidates:
        """See `DraftForest.roots`."""
        self.draft.model.cache.keep_path(self.prefix, np.empty(0, np.int64))
        self.branches = np.zeros((0, 0), np.bool_)
        return self._rank(self.after[torch.from_numpy(roots)], roots + 1, k)

    @torch.inference_mode()
    def grow(self, tokens: IntArray, roots: IntArray, depths: IntArray, parents: IntArray, k: int) -> Candidates:
        """See `DraftForest.grow`."""
        logits = self.draft.model.extend_tree(tokens, roots + depths, self._add(parents, roots + 1))
        return self._rank(logits, roots + depths + 1, k)

    def _rank(self, logits: torch.Tensor, positions: IntArray, k: int) -> Candidates:
        return self.chooser.rank(logits[:, : self.draft.vocabulary], positions.tolist(), k, entropy=True)


def draft_forest(draft: Draft) -> DraftForest:
    """Returns the forest of a draft. Raises `PairError` for prompt lookup, which needs none."""
    if isinstance(draft, FeatureDraft):
        return FeatureForest(draft)
    if isinstance(draft, CausalDraft):
        return CausalForest(draft)
    raise PairError(f"Expected a draft model to record, feature or causal; got a draft of kind {draft.kind!r}.")

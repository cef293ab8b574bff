"""Any Hugging Face causal language model with the target's vocabulary as a draft."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from specgym.env.common.arrays import IntArray
from specgym.env.drafts.calibrator import Calibrator
from specgym.env.models.target import CachedModel
from specgym.env.tree.growth import Candidates
from specgym.env.tree.rounds import Stopwatch
from specgym.env.tree.sampling import TokenChooser
from specgym.env.tree.tree import TokenTree

_NOTHING: IntArray = np.empty(0, np.int64)


class CausalDraft:
    """Drafts with a smaller model of the same vocabulary; its cache keeps what the target accepted.

    Args:
        model: the draft model.
        vocabulary: the target's number of tokens; logits past it (a padded vocabulary) are left out.
        calibrator: fitted for it with its target, if there is one.
    """

    kind = "causal"
    feature_layers: tuple[int, ...] | None = None

    def __init__(self, model: CachedModel, vocabulary: int, calibrator: Calibrator | None = None) -> None:
        self.model, self.calibrator = model, calibrator
        self.vocabulary = vocabulary
        self.context_limit: int | None = model.context_limit
        self.forward_seconds = 0.0

    @property
    def owed(self) -> int:
        """See `Draft.owed`."""
        return len(self.pending)

    def start(self, chooser: TokenChooser) -> None:
        """See `Draft.start`."""
        self.chooser = chooser
        self.model.cache.reset()
        self.pending: list[int] = []  # committed tokens that the cache does not hold yet
        self.committed = 0  # rows of the cache that stand for committed tokens
        self.expanded = _NOTHING  # nodes of the tree in the order of their rows behind those

    def commit(self, tokens: Sequence[int], features: torch.Tensor | None, path: IntArray) -> None:
        """Keeps the accepted nodes that were expanded; the rest is owed and fed with the next root."""
        rows = np.flatnonzero(np.isin(self.expanded, path))
        self.model.cache.keep_path(self.committed, rows)
        self.committed += len(rows)
        self.pending.extend(tokens[len(rows) :])  # what was expanded of a path is its beginning
        self.expanded = _NOTHING

    def expand(self, tree: TokenTree, nodes: IntArray, k: int, entropy: bool = False) -> Candidates:
        """See `Draft.expand`."""
        watch = Stopwatch()
        if self.pending:
            logits = self.model.extend(self.pending)
            self.committed += len(self.pending)
            self.pending = []
        else:
            self.expanded = np.concatenate([self.expanded, nodes])
            visible = tree.ancestors[np.ix_(nodes, self.expanded)]
            # The root is the last committed row: its children stand at `committed`.
            logits = self.model.extend_tree(tree.token[nodes], self.committed - 1 + tree.depth[nodes], visible)
        self.forward_seconds += watch.lap()
        positions = (self.committed + tree.depth[nodes]).tolist()
        return self.chooser.rank(logits[:, : self.vocabulary], positions, k, entropy=entropy)

"""A causal draft: any Hugging Face causal language model with the target's vocabulary."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch

from specgym.env.common.arrays import IntArray
from specgym.env.drafts.base import Draft
from specgym.env.drafts.calibrator import Calibrator
from specgym.env.models.target import CachedModel
from specgym.env.tree.growth import Candidates
from specgym.env.tree.rounds import Stopwatch
from specgym.env.tree.sampling import TokenChooser
from specgym.env.tree.tree import NO_NODES, TokenTree


class CausalDraft(Draft):
    """Drafts with a smaller model of the same vocabulary, whose cache keeps the rows of accepted nodes.

    The draft may lack the target's last tokens (a padded vocabulary). It never proposes them, and reads its own last
    token in their place.

    Args:
        model: the draft model.
        vocabulary: the target's number of tokens; logits past it (a padded vocabulary) are dropped.
        calibrator: the calibrator for this draft and its target, if there is one.
    """

    kind = "causal"

    def __init__(self, model: CachedModel, vocabulary: int, calibrator: Calibrator | None = None) -> None:
        self.model, self.calibrator = model, calibrator
        self.vocabulary = vocabulary
        self.context_limit = model.context_limit

    @property
    def session(self) -> object:
        """See `Draft.session`: several drafts may have one model."""
        return self.model.session

    @session.setter
    def session(self, session: object) -> None:
        self.model.session = session

    def fork(self) -> CausalDraft:
        """See `Draft.fork`."""
        fork = copy.copy(self)
        fork.model = self.model.fork()
        return fork

    def start(self, chooser: TokenChooser) -> None:
        """See `Draft.start`."""
        self.chooser = chooser
        self.model.start()
        self.pending: list[int] = []
        self.committed = 0  # rows of the cache that hold committed tokens
        self.expanded = NO_NODES  # nodes of the tree, in the order of their rows after the committed ones

    def commit(self, tokens: Sequence[int], features: torch.Tensor | None, path: IntArray) -> None:
        """Keeps the rows of accepted nodes that were expanded. The next root's forward reads the other tokens."""
        rows = np.flatnonzero(np.isin(self.expanded, path))
        self.model.cache.keep_path(self.committed, rows)
        self.committed += len(rows)
        self.pending.extend(tokens[len(rows) :])  # the expanded nodes of a path are its beginning
        self.expanded = NO_NODES

    def known(self, tokens: Sequence[int]) -> Sequence[int]:
        """Returns the tokens of a text as the draft reads them."""
        own = self.model.vocabulary
        return tokens if own >= self.vocabulary else [min(token, own - 1) for token in tokens]

    def expand(self, tree: TokenTree, nodes: IntArray, k: int, entropy: bool = False) -> Candidates:
        """See `Draft.expand`."""
        watch = Stopwatch()
        if self.pending:
            logits = self.model.extend(self.known(self.pending))
            self.committed += len(self.pending)
            self.pending = []
        else:
            self.expanded = np.concatenate([self.expanded, nodes])
            visible = tree.ancestors[np.ix_(nodes, self.expanded)]  # [nodes, expanded]
            # The root is the last committed row, so its children have position `committed`.
            logits = self.model.extend_tree(tree.token[nodes], self.committed - 1 + tree.depth[nodes], visible)
        self.forward_seconds += watch.lap()
        positions = (self.committed + tree.depth[nodes]).tolist()
        return self.chooser.rank(logits[:, : self.vocabulary], positions, k, entropy=entropy, branch=(tree, nodes))

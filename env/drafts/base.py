"""What a draft is to the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from specgym.env.common.arrays import IntArray
from specgym.env.drafts.calibrator import Calibrator
from specgym.env.tree.growth import Candidates
from specgym.env.tree.sampling import TokenChooser
from specgym.env.tree.tree import TokenTree


class Draft(Protocol):
    """Guesses the target's next tokens. One request at a time."""

    kind: str
    """name of the kind, as in results"""
    feature_layers: tuple[int, ...] | None
    """layers of the target whose hidden states `commit` must bring, before the last one's; None if it needs none"""
    context_limit: int | None
    """longest text it can follow; None for no bound [tokens]"""
    calibrator: Calibrator | None
    """what its probabilities are worth with its target, where that was measured"""
    forward_seconds: float
    """wall time spent in forwards so far, never reset [s]"""

    @property
    def owed(self) -> int:
        """Committed tokens that the next `expand` of a root feeds first: the rows of that forward [tokens]."""

    def start(self, chooser: TokenChooser) -> None:
        """Forgets the last request. Candidates are ranked by `chooser`, with the target's noise."""

    def commit(self, tokens: Sequence[int], features: torch.Tensor | None, path: IntArray) -> None:
        """Takes in tokens that the target has settled; the work may wait until the next `expand`.

        Args:
            tokens: the tokens that follow everything committed before; the last one is the next tree's root.
            features: the target's hidden states at the position *before* each token, `[tokens, width]`; None unless
                the draft has `feature_layers`. The first token of a text has none: it comes without a row.
            path: nodes of the last tree that stand for all but the last of `tokens`, `int64[tokens - 1]`; empty if
                there was no tree.
        """

    def expand(self, tree: TokenTree, nodes: IntArray, k: int, entropy: bool = False) -> Candidates:
        """The k best continuations after each of `nodes`, which are of one depth and follow in growing order.

        The first call after a `commit` is for the root alone. Later calls may leave out nodes of a level, and levels at
        the end of a tree, but the parents of all nodes were expanded by the call before. Between two commits there may
        be no call at all. The candidates for a smaller k are the first of those for a larger one. With `entropy` a
        draft that has a distribution tells its entropies too.
        """

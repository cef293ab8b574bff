"""The interface of drafts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from specgym.env.common.arrays import IntArray
from specgym.env.drafts.calibrator import Calibrator
from specgym.env.tree.growth import Candidates
from specgym.env.tree.sampling import TokenChooser
from specgym.env.tree.tree import TokenTree

if TYPE_CHECKING:
    from typing_extensions import Self


class Draft(Protocol):
    """Proposes the target's next tokens, for one request at a time. Drafts inherit the defaults."""

    kind: str
    """name of the kind, as in results"""
    feature_layers: tuple[int, ...] | None = None
    """target layers whose hidden states `commit` needs besides those of the last layer; None if it needs no states"""
    context_limit: int | None = None
    """longest text that the draft can read; None for no bound [tokens]"""
    calibrator: Calibrator | None = None
    """maps the draft's probabilities to acceptance by its target; None if not fitted"""
    forward_seconds: float = 0.0
    """wall time of all forwards so far, never reset [s]"""
    session: object = None
    """stands for the text that the caches hold; set by who started it"""
    pending: Sequence[int] = ()
    """committed tokens that the draft has not read yet [token ids]"""

    @property
    def owed(self) -> int:
        """Number of pending tokens: the rows of the next root's forward [tokens]."""
        return len(self.pending)

    def fork(self) -> Self:
        """Returns the same draft with caches and a text of its own, for another text at the same time."""
        return copy.copy(self)

    def start(self, chooser: TokenChooser) -> None:
        """Starts a new request. `chooser` ranks candidates, with the target's noise."""

    def commit(self, tokens: Sequence[int], features: torch.Tensor | None, path: IntArray) -> None:
        """Adds committed tokens to the text. A draft may read them as late as the next `expand`.

        Args:
            tokens: the new tokens; the last one is the next tree's root.
            features: the target's hidden states at the position *before* each token, `[tokens, width]`; None unless
                the draft has `feature_layers`. The first token of a text has no row.
            path: nodes of the last tree for all `tokens` except the last one, `int64[tokens - 1]`; empty if there was
                no tree.
        """

    def expand(self, tree: TokenTree, nodes: IntArray, k: int, entropy: bool = False) -> Candidates:
        """Returns the k best continuations after each of `nodes`, which have one depth and ascend.

        The first call after a `commit` expands the root alone. A later call may leave out nodes of a level, but the
        previous call has expanded the parents of all its nodes. There may be no call between two commits. Candidates
        for a smaller k are the first of those for a larger k. With `entropy`, a draft that has a distribution adds its
        entropies.
        """

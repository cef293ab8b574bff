"""A pair's draft that notes, level by level, what a round of a `LiveDecoder` did and how long it took."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from specgym.env.common.arrays import IntArray
from specgym.env.drafts import Draft, LookupDraft, MergedDraft
from specgym.env.tree.growth import Candidates, Expand
from specgym.env.tree.parameters import TreeParameters
from specgym.env.tree.tree import TokenTree

_UNLIKELY = -20.0  # log-probability of a token that nobody proposed


@dataclass(slots=True)
class Level:
    """One call of the expander."""

    began: float
    """by the clock [s]"""
    rows: int = 0
    """rows of the draft's forward; 0 if there was none"""
    lookup_nodes: int = 0
    """nodes that prompt lookup expanded"""
    seconds: float = 0.0
    """until the next call; of the last one, until its end [s]"""


class TimedDraft(MergedDraft):
    """Notes the levels of the last round.

    Args:
        draft: the pair's draft.

    Attributes:
        levels: one entry a call of the expander, the root's first; none of a round that did not speculate.
    """

    def __init__(self, draft: Draft) -> None:
        super().__init__(draft)
        self.levels: list[Level] = []

    def expander(self, parameters: TreeParameters) -> Expand[TokenTree]:
        """See `MergedDraft.expander`."""
        self.levels = []
        expand = super().expander(parameters)

        def timed(tree: TokenTree, nodes: IntArray, k: int) -> Candidates:
            level = Level(time.perf_counter())
            if self.levels:
                self.levels[-1].seconds = level.began - self.levels[-1].began
            self.levels.append(level)
            forwards, looked_up = len(self.level_rows), self.lookup_nodes
            found = expand(tree, nodes, k)
            level.rows = sum(self.level_rows[forwards:])
            level.lookup_nodes = self.lookup_nodes - looked_up
            level.seconds = time.perf_counter() - level.began
            return found

        return timed


class FilledLookup(LookupDraft):
    """Prompt lookup that always has k offers, in the end arbitrary ones.

    Of lookup alone no tree of a given size can be asked for; what a verification costs does not depend on what it
    verifies.
    """

    def expand(self, tree: TokenTree, nodes: IntArray, k: int, entropy: bool = False) -> Candidates:
        """See `LookupDraft.expand`."""
        found = super().expand(tree, nodes, k, entropy)
        log_probs = np.maximum(found.log_probs, _UNLIKELY)
        return replace(found, log_probs=log_probs, from_lookup=np.ones(log_probs.shape, np.bool_))

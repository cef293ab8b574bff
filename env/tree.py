"""The token tree of a round."""

from __future__ import annotations

import numpy as np

from env.forest import BoolArray, FloatArray, IntArray, TokenForest

__all__ = ["BoolArray", "FloatArray", "IntArray", "TokenTree"]


class TokenTree(TokenForest):
    """A forest of one tree, under the last committed token, which knows who stands above whom.

    Args:
        root: the last committed token.

    Attributes:
        ancestors: `ancestors[i, j]` says whether j is i or stands above it, `bool[nodes, nodes]`.
    """

    def __init__(self, root: int) -> None:
        super().__init__(np.array([root], np.int64))
        self.ancestors: BoolArray = np.ones((1, 1), np.bool_)

    def add(
        self, parents: IntArray, tokens: IntArray, log_probs: FloatArray, from_lookup: BoolArray | None = None
    ) -> IntArray:
        """Adds one node under each of `parents` and returns the new nodes' indices, `int64[added]`."""
        old = len(self)
        indices = super().add(parents, tokens, log_probs, from_lookup)
        ancestors = np.zeros((len(self), len(self)), np.bool_)
        ancestors[:old, :old] = self.ancestors
        ancestors[indices, :old] = self.ancestors[parents]
        ancestors[indices, indices] = True
        self.ancestors = ancestors
        return indices

    def select(self, nodes: IntArray) -> TokenTree:
        """The tree of `nodes`, renumbered in the order given: the root first, every parent before its children."""
        position = np.full(len(self) + 1, -1)
        position[nodes] = np.arange(len(nodes))
        chosen = TokenTree(int(self.token[0]))
        chosen.token, chosen.depth, chosen.owner = self.token[nodes], self.depth[nodes], self.owner[nodes]
        chosen.parent = position[self.parent[nodes]]  # the root's -1 reads the spare last entry, -1 itself
        chosen.log_prob, chosen.log_reach = self.log_prob[nodes], self.log_reach[nodes]
        chosen.from_lookup = self.from_lookup[nodes]
        chosen.ancestors = self.ancestors[np.ix_(nodes, nodes)]
        return chosen

    def accepted_path(self, choices: IntArray) -> IntArray:
        """The longest path, root included, on which every node is the target's choice after its parent.

        Args:
            choices: the target's token after each node, `int64[nodes]`.
        """
        correct = np.zeros(len(self), np.bool_)
        correct[0] = True
        correct[1:] = self.token[1:] == choices[self.parent[1:]]
        whole = ~(self.ancestors & ~correct).any(axis=1)  # every node on the way is correct
        deepest = int(np.argmax(np.where(whole, self.depth, -1)))
        return np.flatnonzero(self.ancestors[deepest])

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
        # Plain numbers: for the few nodes of a tree, array operations take longer to call than to do.
        token, parent, depth = self.token.tolist(), self.parent.tolist(), self.depth.tolist()
        wanted: list[int] = choices.tolist()
        whole, last = [True], 0  # whether every node on the way is correct, and the deepest of those
        for node in range(1, len(token)):
            above = parent[node]
            whole.append(whole[above] and token[node] == wanted[above])
            if whole[node] and depth[node] > depth[last]:
                last = node
        path = [last]
        while path[-1]:
            path.append(parent[path[-1]])
        return np.array(path[::-1], np.int64)

"""Token trees as flat arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["BoolArray", "FloatArray", "IntArray", "TokenTree"]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class TokenTree:
    """A tree of draft tokens under the last committed token, its root.

    Node 0 is the root, at depth 0 and certain to be reached. Every parent comes before its children, so a single
    pass in order of the nodes sees a path from its beginning.

    Attributes:
        token: token ids, `int64[nodes]`.
        parent: index of each node's parent, -1 for the root, `int64[nodes]`.
        depth: tokens below the root, `int64[nodes]`.
        log_prob: the draft's log-probability of the node given its parent, `float64[nodes]`.
        log_reach: sum of `log_prob` along the path, `float64[nodes]`.
        from_lookup: whether prompt lookup alone proposed the node, `bool[nodes]`.
        ancestors: `ancestors[i, j]` says whether j is i or stands above it, `bool[nodes, nodes]`.
    """

    def __init__(self, root: int) -> None:
        self.token: IntArray = np.array([root], np.int64)
        self.parent: IntArray = np.array([-1], np.int64)
        self.depth: IntArray = np.zeros(1, np.int64)
        self.log_prob: FloatArray = np.zeros(1)
        self.log_reach: FloatArray = np.zeros(1)
        self.from_lookup: BoolArray = np.zeros(1, np.bool_)
        self.ancestors: BoolArray = np.ones((1, 1), np.bool_)

    def __len__(self) -> int:
        return len(self.token)

    @property
    def reach(self) -> FloatArray:
        """Cumulative probability of being reached, `float64[nodes]`."""
        return np.exp(self.log_reach)

    def add(
        self, parents: IntArray, tokens: IntArray, log_probs: FloatArray, from_lookup: BoolArray | None = None
    ) -> IntArray:
        """Adds one node under each of `parents` and returns the new nodes' indices, `int64[added]`."""
        old, added = len(self), len(parents)
        indices = np.arange(old, old + added)
        ancestors = np.zeros((old + added, old + added), np.bool_)
        ancestors[:old, :old] = self.ancestors
        ancestors[indices, :old] = self.ancestors[parents]
        ancestors[indices, indices] = True
        self.ancestors = ancestors
        self.token = np.concatenate([self.token, tokens])
        self.parent = np.concatenate([self.parent, parents])
        self.depth = np.concatenate([self.depth, self.depth[parents] + 1])
        self.log_prob = np.concatenate([self.log_prob, log_probs])
        self.log_reach = np.concatenate([self.log_reach, self.log_reach[parents] + log_probs])
        looked_up = np.zeros(added, np.bool_) if from_lookup is None else from_lookup
        self.from_lookup = np.concatenate([self.from_lookup, looked_up])
        return indices

    def likeliest(self, budget: int) -> IntArray:
        """The root and the `budget` nodes of highest reach, in order, `int64[kept]`.

        Reach never rises along a path, so what is kept stays connected; among equals the earlier node wins, which
        is never a child before its parent.
        """
        if len(self) <= budget + 1:
            return np.arange(len(self))
        return np.sort(np.argsort(-self.log_reach, kind="stable")[: budget + 1])

    def select(self, nodes: IntArray) -> TokenTree:
        """The tree of `nodes`, renumbered in the order given: the root first, every parent before its children."""
        position = np.full(len(self) + 1, -1)
        position[nodes] = np.arange(len(nodes))
        chosen = TokenTree(int(self.token[0]))
        chosen.token, chosen.depth = self.token[nodes], self.depth[nodes]
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

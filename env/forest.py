"""Token trees of many texts side by side, as flat arrays: what trees share with recordings of thousands of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["BoolArray", "FloatArray", "IntArray", "TokenForest", "best_of_each"]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class TokenForest:
    """Trees of draft tokens, each under the last committed token of its text, its root.

    The first nodes are the roots, at depth 0 and certain to be reached; further ones follow level by level. Every
    parent comes before its children, so a single pass in order of the nodes sees each path from its beginning.

    Args:
        roots: their tokens, `int64[trees]`.

    Attributes:
        token: token ids, `int64[nodes]`.
        parent: index of each node's parent, -1 for a root, `int64[nodes]`.
        depth: tokens below the root, `int64[nodes]`.
        owner: the tree that a node belongs to, `int64[nodes]`.
        log_prob: the draft's log-probability of the node given its parent, `float64[nodes]`.
        log_reach: sum of `log_prob` along the path, `float64[nodes]`.
        from_lookup: whether prompt lookup alone proposed the node, `bool[nodes]`.
    """

    def __init__(self, roots: IntArray) -> None:
        count = len(roots)
        self.token: IntArray = np.asarray(roots, np.int64)
        self.parent: IntArray = np.full(count, -1, np.int64)
        self.depth: IntArray = np.zeros(count, np.int64)
        self.owner: IntArray = np.arange(count)
        self.log_prob: FloatArray = np.zeros(count)
        self.log_reach: FloatArray = np.zeros(count)
        self.from_lookup: BoolArray = np.zeros(count, np.bool_)

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
        self.token = np.concatenate([self.token, tokens])
        self.parent = np.concatenate([self.parent, parents])
        self.depth = np.concatenate([self.depth, self.depth[parents] + 1])
        self.owner = np.concatenate([self.owner, self.owner[parents]])
        self.log_prob = np.concatenate([self.log_prob, log_probs])
        self.log_reach = np.concatenate([self.log_reach, self.log_reach[parents] + log_probs])
        looked_up = np.zeros(added, np.bool_) if from_lookup is None else from_lookup
        self.from_lookup = np.concatenate([self.from_lookup, looked_up])
        return np.arange(old, old + added)

    def likeliest(self, budget: int) -> IntArray:
        """Of each tree the root and the `budget` nodes of highest reach, in order, `int64[kept]`.

        Reach never rises along a path, so what is kept stays connected; among equals the earlier node wins, which
        is never a child before its parent.
        """
        if len(self) <= budget + 1:
            return np.arange(len(self))
        return best_of_each(self.owner, self.log_reach, budget + 1)


def best_of_each(owner: IntArray, score: FloatArray, most: int) -> IntArray:
    """Indices of the `most` highest scores of every owner, in growing order; of equal ones the earlier win.

    Args:
        owner: whose each entry is, from 0 on, `int64[entries]`.
        score: `float64[entries]`.
        most: entries kept of an owner, at most.
    """
    order = np.lexsort((-score, owner))
    counts = np.bincount(owner)
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[place < most])

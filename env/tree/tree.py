"""Token trees as flat arrays: the tree of one round, and forests with the trees of many texts."""

from __future__ import annotations

import numpy as np

from specgym.env.common.arrays import BoolArray, FloatArray, IntArray

NO_NODES: IntArray = np.empty(0, np.int64)
"""an empty list of nodes"""


class TokenForest:
    """Trees of draft tokens. The root of each tree is the last committed token of its text.

    The roots come first, with depth 0 and reach 1. Other nodes follow level by level. Every parent comes before its
    children, so one pass over the nodes follows each path from its root.

    Args:
        roots: tokens of the roots, `int64[trees]`.

    Attributes:
        token: token ids, `int64[nodes]`.
        parent: index of the parent, -1 for a root, `int64[nodes]`.
        depth: tokens from the root to the node, `int64[nodes]`.
        owner: index of the node's tree, `int64[nodes]`.
        log_prob: the draft's log-probability of the node given its parent, `float64[nodes]`.
        log_reach: sum of `log_prob` along the path, `float64[nodes]`.
        from_lookup: whether only prompt lookup proposed the node, `bool[nodes]`.
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
        """Probability that each node is reached, the product along its path, `float64[nodes]`."""
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
        """The root and the `budget` nodes of highest reach of each tree, in order, `int64[kept]`.

        Reach never rises along a path, so the kept nodes are connected. Of equally likely nodes the earlier one wins;
        a parent comes before its children.
        """
        if len(self) <= budget + 1:
            return np.arange(len(self))
        return best_of_each(self.owner, self.log_reach, budget + 1)


class TokenTree(TokenForest):
    """A forest of one tree, with the ancestors of its nodes.

    Args:
        root: the last committed token.

    Attributes:
        ancestors: whether node j lies on the path from the root to node i, i included, `bool[nodes i, nodes j]`.
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
        """The tree of `nodes`, renumbered in the given order: the root first, every parent before its children."""
        position = np.full(len(self) + 1, -1)
        position[nodes] = np.arange(len(nodes))
        chosen = TokenTree(int(self.token[0]))
        chosen.token, chosen.depth, chosen.owner = self.token[nodes], self.depth[nodes], self.owner[nodes]
        chosen.parent = position[self.parent[nodes]]  # the root's parent, -1, reads the spare last entry, -1
        chosen.log_prob, chosen.log_reach = self.log_prob[nodes], self.log_reach[nodes]
        chosen.from_lookup = self.from_lookup[nodes]
        chosen.ancestors = self.ancestors[np.ix_(nodes, nodes)]
        return chosen

    def child(self, node: int, token: int) -> int:
        """The child of `node` that holds `token`, or -1."""
        children = np.flatnonzero((self.parent == node) & (self.token == token))
        return int(children[0]) if len(children) else -1

    def paths(self, nodes: IntArray) -> IntArray:
        """The tokens from the root, left out, to each of `nodes`, which have one depth, `int64[nodes, depth]`."""
        on_path = np.nonzero(self.ancestors[nodes])[1].reshape(len(nodes), -1)  # [nodes, 1 + depth]
        return self.token[on_path[:, 1:]]

    def accepted_path(self, choices: IntArray) -> IntArray:
        """The longest path from the root on which every node is the target's choice after its parent, `int64[path]`.

        Args:
            choices: the target's token after each node, `int64[nodes]`.
        """
        # Python lists: for so few nodes, calling an array operation takes longer than the work.
        token, parent, depth = self.token.tolist(), self.parent.tolist(), self.depth.tolist()
        wanted: list[int] = choices.tolist()
        whole, last = [True], 0  # whether the path to each node is correct, and the deepest node where it is
        for node in range(1, len(token)):
            above = parent[node]
            whole.append(whole[above] and token[node] == wanted[above])
            if whole[node] and depth[node] > depth[last]:
                last = node
        return np.flatnonzero(self.ancestors[last])


def best_of_each(owner: IntArray, score: FloatArray, most: int) -> IntArray:
    """Indices of the `most` highest scores of every owner, ascending. Of equal scores, the earlier ones win.

    Args:
        owner: the owner of each entry, from 0 on, `int64[entries]`.
        score: `float64[entries]`.
        most: most entries kept of an owner.
    """
    order = np.lexsort((-score, owner))
    counts = np.bincount(owner)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[rank < most])

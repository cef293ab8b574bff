"""The growth rule: which nodes to expand and which to keep, under the parameters of a round.

One function, whoever asks: live decoding and replay differ only in where the candidates come from, and in how many
trees they grow at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from specgym.env.common.arrays import BoolArray, FloatArray, IntArray
from specgym.env.tree.parameters import TreeParameters
from specgym.env.tree.tree import TokenForest, TokenTree, best_of_each

Forest = TypeVar("Forest", bound=TokenForest)


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a draft offers after each of n nodes: k continuations, best first.

    A continuation whose log-probability is minus infinity is no offer: the draft had fewer than k.
    """

    tokens: IntArray
    """token ids, `int64[n, k]`"""
    log_probs: FloatArray
    """log-probability of each, given its node: what reach is made of, `float64[n, k]`"""
    confidence: FloatArray
    """the draft's own top-1 probability at each node, before any calibration: what Phase 1 goes by, `float64[n]`"""
    from_lookup: BoolArray | None = None
    """which of them prompt lookup alone offers, `bool[n, k]`; None if it offers none"""
    entropy: FloatArray | None = None
    """entropy of the draft model's distribution at each node, before any noise, 0 where the model was not asked,
    `float64[n]` [nats]; None if not asked for"""


Expand = Callable[[Forest, IntArray, int], Candidates]
"""`expand(forest, nodes, k)`: the k best continuations after each of `nodes`, all of the same depth"""


def grow_tree(root: int, parameters: TreeParameters, expand: Expand[TokenTree]) -> TokenTree:
    """Grows the token tree of a round, level by level, one call of `expand` a level.

    Args:
        root: the last committed token.
        parameters: the round's tree parameters. `node_budget` is not applied here, see `TokenTree.likeliest`.
        expand: the draft.
    """
    return grow(TokenTree(root), parameters, expand)


def grow(forest: Forest, parameters: TreeParameters, expand: Expand[Forest]) -> Forest:
    """Grows all trees of a forest of roots, as `grow_tree` grows one, and returns it."""
    level = np.arange(len(forest))
    for depth in range(parameters.max_depth if parameters.speculates else 0):
        frontier = _expandable(parameters, forest, level, depth)
        if not frontier.size:
            break
        level = _branch(parameters, forest, frontier, expand(forest, frontier, parameters.max_branch))
    return forest


def _expandable(parameters: TreeParameters, tree: TokenForest, level: IntArray, depth: int) -> IntArray:
    """Phase 2: those nodes of a level that are likely enough, at most `frontier_width` of a tree, if it is worth it."""
    if depth == 0:
        return level
    reach = tree.reach[level]
    likely = reach >= parameters.early_stop
    if depth >= parameters.base_depth:
        likely &= reach > parameters.deep_expand
    if parameters.min_confidence > 0:
        likely &= np.exp(tree.log_prob[level]) >= parameters.min_confidence
    level, reach = level[likely], reach[likely]
    if level.size > parameters.frontier_width:
        level = level[best_of_each(tree.owner[level], reach, parameters.frontier_width)]
    if parameters.min_level_reach > 0:
        worth = np.bincount(tree.owner[level], tree.reach[level])  # by tree: the most that its next level can add
        level = level[worth[tree.owner[level]] >= parameters.min_level_reach]
    return level


def _branch(parameters: TreeParameters, tree: TokenForest, frontier: IntArray, candidates: Candidates) -> IntArray:
    """Phase 1: the surer the draft, the fewer children. Returns those new nodes that may be expanded in their turn."""
    confidence = candidates.confidence
    children = np.full(len(frontier), parameters.mid_branch)
    children[confidence > parameters.high_confidence] = parameters.min_branch
    children[confidence < parameters.low_confidence] = parameters.max_branch
    offered = candidates.log_probs > -np.inf
    chosen = offered & (np.arange(offered.shape[1]) < children[:, None])
    if parameters.min_reach > 0:
        chosen &= np.exp(tree.log_reach[frontier][:, None] + candidates.log_probs) >= parameters.min_reach
    rows, columns = np.nonzero(chosen)
    from_lookup = None if candidates.from_lookup is None else candidates.from_lookup[rows, columns]
    tokens, log_probs = candidates.tokens[rows, columns], candidates.log_probs[rows, columns]
    added = tree.add(frontier[rows], tokens, log_probs, from_lookup)
    if parameters.max_entropy > 0 and candidates.entropy is not None:
        unsure = candidates.entropy[rows] > parameters.max_entropy
        return added[~unsure if from_lookup is None else ~unsure | from_lookup]
    return added

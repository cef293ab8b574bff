"""The growth rule: which nodes of a tree are expanded, and with how many children, under a round's parameters.

Live decoding and replay use the same function. They differ in where candidates come from, and in how many trees they
grow at once.
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
    """Continuations that a draft proposes after each of n nodes: k a node, best first.

    A log-probability of minus infinity marks an empty place: the draft had fewer than k continuations.
    """

    tokens: IntArray
    """token ids, `int64[n, k]`"""
    log_probs: FloatArray
    """log-probability of each given its node, a factor of reach, `float64[n, k]`"""
    confidence: FloatArray
    """the draft's top-1 probability at each node, before calibration, `float64[n]`"""
    from_lookup: BoolArray | None = None
    """which of them only prompt lookup proposes, `bool[n, k]`; None if there are none"""
    entropy: FloatArray | None = None
    """entropy of the draft model's distribution at each node, before noise, and 0 where the model proposes nothing,
    `float64[n]` [nats]; None if not requested"""


Expand = Callable[[Forest, IntArray, int], Candidates]
"""`expand(forest, nodes, k)` returns the k best continuations after each of `nodes`, which all have the same depth"""


def grow_tree(root: int, parameters: TreeParameters, expand: Expand[TokenTree]) -> TokenTree:
    """Grows the token tree of a round level by level, with one call of `expand` a level.

    Args:
        root: the last committed token.
        parameters: the round's tree parameters. `TokenTree.likeliest` applies `node_budget` later.
        expand: the draft.
    """
    return grow(TokenTree(root), parameters, expand)


def grow(forest: Forest, parameters: TreeParameters, expand: Expand[Forest]) -> Forest:
    """Grows every tree of a forest of roots as `grow_tree` does, and returns the forest."""
    level = np.arange(len(forest))  # nodes of the deepest level
    for depth in range(parameters.max_depth if parameters.speculates else 0):
        frontier = _expandable(parameters, forest, level, depth)
        if not frontier.size:
            break
        level = _branch(parameters, forest, frontier, expand(forest, frontier, parameters.max_branch))
    return forest


def _expandable(parameters: TreeParameters, tree: TokenForest, level: IntArray, depth: int) -> IntArray:
    """Phase 2: returns the nodes of a level that are likely enough to be expanded, at most `frontier_width` a tree."""
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
        level_reach = np.bincount(tree.owner[level], tree.reach[level])  # [trees]
        level = level[level_reach[tree.owner[level]] >= parameters.min_level_reach]
    return level


def _branch(parameters: TreeParameters, tree: TokenForest, frontier: IntArray, candidates: Candidates) -> IntArray:
    """Phase 1: adds fewer children where the draft is surer. Returns the new nodes that may be expanded next."""
    confidence = candidates.confidence
    children = np.full(len(frontier), parameters.mid_branch)  # [frontier]
    children[confidence > parameters.high_confidence] = parameters.min_branch
    children[confidence < parameters.low_confidence] = parameters.max_branch
    offered = candidates.log_probs > -np.inf  # [frontier, k]
    chosen = offered & (np.arange(offered.shape[1]) < children[:, None])
    if parameters.min_reach > 0:
        chosen &= np.exp(tree.log_reach[frontier][:, None] + candidates.log_probs) >= parameters.min_reach
    rows, columns = np.nonzero(chosen)  # [added] each
    from_lookup = None if candidates.from_lookup is None else candidates.from_lookup[rows, columns]
    tokens, log_probs = candidates.tokens[rows, columns], candidates.log_probs[rows, columns]
    added = tree.add(frontier[rows], tokens, log_probs, from_lookup)
    if parameters.max_entropy > 0 and candidates.entropy is not None:
        unsure = candidates.entropy[rows] > parameters.max_entropy
        return added[~unsure if from_lookup is None else ~unsure | from_lookup]
    return added

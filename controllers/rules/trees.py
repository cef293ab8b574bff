"""Trees that follow reach, and the published rules that draft them.

Recordings bound these rules: their published forms have no least reach, see `MIN_REACH`.
"""

from __future__ import annotations

from typing import Any

from specgym.controllers.rules.phases import StaticController, uniform_tree
from specgym.env.tree.parameters import Source, TreeParameters

DEPTH = 10
"""default depth limit of every rule; traces are recorded to this depth [tokens]"""
MIN_REACH = 0.05
"""reach under which no rule expands a node by default; traces are recorded down to it [probability]"""
_CHILDREN = 4  # of a node, as many as traces keep


def reach_tree(depth: int, node_budget: int, *, early_stop: float = MIN_REACH, **fields: Any) -> TreeParameters:
    """Returns a tree in which the likeliest nodes of a level get all children and the likeliest of all are verified.

    Args:
        depth: deepest level [tokens].
        node_budget: most nodes verified [nodes].
        early_stop: reach under which a node is not expanded [probability].
        fields: further fields of `TreeParameters`.

    Raises:
        ParameterError: a value outside its range.
    """
    return uniform_tree(_CHILDREN, depth, node_budget=node_budget, early_stop=early_stop, **fields)


def eagle2(
    width: int = 8, total: int = 60, depth: int = 6, source: Source = "model", early_stop: float = MIN_REACH
) -> StaticController:
    """Expands the likeliest nodes of every level, then keeps the likeliest of all.

    Li et al. 2024, "EAGLE-2: Faster Inference of Language Models with Dynamic Draft Trees". There 10 nodes of a level
    get 10 children each and 60 nodes are kept; here a node gets the 4 children that are recorded.

    Args:
        width: nodes expanded in a level [nodes].
        total: nodes verified [nodes].
        depth: levels [tokens].
        source: who proposes nodes, see `TreeParameters`.
        early_stop: reach under which a node is not expanded [probability].

    Raises:
        ParameterError: a value outside its range.
    """
    tree = reach_tree(depth, total, early_stop=early_stop, frontier_width=width, source=source, calibrated=False)
    return StaticController(tree)


def opt_tree(
    budget: int = 60, delta: float = 0.5, depth: int = DEPTH, source: Source = "model", early_stop: float = MIN_REACH
) -> StaticController:
    """Keeps the tree of most expected accepted tokens at a node budget, and deepens it while a level gains enough.

    Wang et al. 2024, "OPT-Tree: Speculative Decoding with Adaptive Draft Tree Structure". There the next level is
    drafted if the last one added at least delta to the expected length. A level adds the summed reach of its nodes;
    here only nodes that would be expanded count.

    Args:
        budget: nodes verified [nodes].
        delta: least gain of a level [tokens].
        depth: deepest level [tokens].
        source: who proposes nodes, see `TreeParameters`.
        early_stop: reach under which a node is not expanded [probability].

    Raises:
        ParameterError: a value outside its range.
    """
    tree = reach_tree(depth, budget, early_stop=early_stop, min_level_reach=delta, source=source, calibrated=False)
    return StaticController(tree)

"""Trees that several rules ask for, within what a recording covers."""

from __future__ import annotations

from specgym.env.tree.parameters import Source, TreeParameters

DEEPEST = 10
"""depth that no rule goes past by default, as deep as traces are recorded [tokens]"""
FLOOR = 0.05
"""reach under which no rule expands a node by default: one in twenty is ever reached, and traces are recorded no
further. The rules as published have no such bound [probability]"""
_CHILDREN = 4  # of a node, as many as traces keep


def chain(
    depth: int,
    source: Source = "model",
    *,
    early_stop: float = FLOOR,
    min_confidence: float = 0.0,
    max_entropy: float = 0.0,
) -> TreeParameters:
    """One token after another: the likeliest child of every node, by the draft's own probabilities.

    Args:
        depth: most tokens [tokens].
        source: who proposes them, see `TreeParameters`.
        early_stop: reach under which it ends [probability].
        min_confidence: probability of a token under which it ends with that token [probability].
        max_entropy: entropy of the draft's distribution over which it ends with the token drawn; 0 for no bound [nats].

    Raises:
        ParameterError: a value outside its range.
    """
    return TreeParameters(
        base_depth=depth,
        max_depth=depth,
        min_branch=1,
        mid_branch=1,
        max_branch=1,
        early_stop=early_stop,
        source=source,
        calibrated=False,
        min_confidence=min_confidence,
        max_entropy=max_entropy,
    )


def spreading(
    depth: int,
    node_budget: int,
    source: Source = "model",
    *,
    frontier_width: int = 8,
    early_stop: float = FLOOR,
    min_reach: float = 0.0,
    min_level_reach: float = 0.0,
    calibrated: bool = True,
) -> TreeParameters:
    """A tree that spreads wherever reach is: the likeliest nodes of a level get all children, the likeliest stay.

    Args:
        depth: deepest level [tokens].
        node_budget: most nodes verified [nodes].
        source: who proposes nodes, see `TreeParameters`.
        frontier_width: most nodes expanded in a level [nodes].
        early_stop: reach under which a node is not expanded [probability].
        min_reach: reach under which a node is left out [probability].
        min_level_reach: summed reach that a level must expand [tokens].
        calibrated: whether reach is made of calibrated probabilities.

    Raises:
        ParameterError: a value outside its range.
    """
    return TreeParameters(
        base_depth=depth,
        max_depth=depth,
        min_branch=_CHILDREN,
        mid_branch=_CHILDREN,
        max_branch=_CHILDREN,
        early_stop=early_stop,
        frontier_width=frontier_width,
        node_budget=node_budget,
        source=source,
        calibrated=calibrated,
        min_reach=min_reach,
        min_level_reach=min_level_reach,
    )

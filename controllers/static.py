"""Controllers whose parameters never change: plain decoding, a fixed tree, and Phases 1 and 2.

Phases 1 and 2 adapt inside a round, node by node; that is the growth rule's work, these only set it up.
"""

from __future__ import annotations

from env.observation import Observation
from env.parameters import PLAIN, TreeParameters

__all__ = ["StaticController", "autoregressive", "confidence", "dynamic_depth", "fixed_tree"]


class StaticController:
    """The same parameters for every round.

    Args:
        parameters: those parameters.
    """

    def __init__(self, parameters: TreeParameters) -> None:
        self.parameters = parameters

    def reset(self) -> None:
        """Nothing is remembered."""

    def act(self, observation: Observation) -> TreeParameters:
        """The parameters."""
        return self.parameters


def autoregressive() -> StaticController:
    """Plain decoding: no draft, one token a round. What every speed-up is measured against."""
    return StaticController(PLAIN)


def fixed_tree(branch: int = 2, depth: int = 4, node_budget: int = 64) -> StaticController:
    """A complete tree whatever the text: `branch` children under every node, `depth` levels.

    Args:
        branch: children of every node [nodes].
        depth: levels below the root [tokens].
        node_budget: most nodes verified [nodes].
    """
    return StaticController(
        TreeParameters(
            base_depth=depth,
            max_depth=depth,
            min_branch=branch,
            mid_branch=branch,
            max_branch=branch,
            frontier_width=max(node_budget, 1),
            node_budget=node_budget,
        )
    )


def confidence(
    high_confidence: float = 0.8,
    low_confidence: float = 0.3,
    min_branch: int = 1,
    mid_branch: int = 2,
    max_branch: int = 4,
    depth: int = 4,
    frontier_width: int = 8,
    node_budget: int = 32,
) -> StaticController:
    """Phase 1: the surer the draft is at a node, the fewer children the node gets; every branch is equally deep.

    The arguments are those of `TreeParameters`, `depth` standing for both depths.
    """
    return StaticController(
        TreeParameters(
            base_depth=depth,
            max_depth=depth,
            min_branch=min_branch,
            mid_branch=mid_branch,
            max_branch=max_branch,
            high_confidence=high_confidence,
            low_confidence=low_confidence,
            frontier_width=frontier_width,
            node_budget=node_budget,
        )
    )


def dynamic_depth(
    base_depth: int = 4,
    max_depth: int = 8,
    early_stop: float = 0.1,
    deep_expand: float = 0.7,
    high_confidence: float = 0.8,
    low_confidence: float = 0.3,
    min_branch: int = 1,
    mid_branch: int = 2,
    max_branch: int = 4,
    frontier_width: int = 8,
    node_budget: int = 32,
) -> StaticController:
    """Phase 2: Phase 1, and unlikely branches stop early while very likely ones go on past the base depth.

    The arguments are those of `TreeParameters`.
    """
    return StaticController(
        TreeParameters(
            base_depth=base_depth,
            max_depth=max_depth,
            min_branch=min_branch,
            mid_branch=mid_branch,
            max_branch=max_branch,
            high_confidence=high_confidence,
            low_confidence=low_confidence,
            early_stop=early_stop,
            deep_expand=deep_expand,
            frontier_width=frontier_width,
            node_budget=node_budget,
        )
    )

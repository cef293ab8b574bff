"""Controllers whose parameters never change: plain decoding, a fixed tree, and Phases 1 and 2.

Phases 1 and 2 adapt inside a round, node by node; that is the growth rule's work, these only set it up.
"""

from __future__ import annotations

from env.observation import Observation
from env.parameters import Source, TreeParameters

__all__ = ["PHASE_1", "PHASE_2", "StaticController", "fixed_tree"]

PHASE_1 = TreeParameters(
    base_depth=4,
    max_depth=4,
    min_branch=1,
    mid_branch=2,
    max_branch=4,
    high_confidence=0.8,
    low_confidence=0.3,
)
"""The surer the draft is at a node, the fewer children the node gets; every branch is equally deep."""

PHASE_2 = TreeParameters(
    base_depth=4,
    max_depth=8,
    min_branch=1,
    mid_branch=2,
    max_branch=4,
    high_confidence=0.8,
    low_confidence=0.3,
    early_stop=0.1,
    deep_expand=0.7,
)
"""Phase 1, and unlikely branches stop early while very likely ones go on past the base depth."""


class StaticController:
    """The same parameters for every round.

    Args:
        parameters: those parameters.
    """

    observes_draft = False

    def __init__(self, parameters: TreeParameters) -> None:
        self.parameters = parameters

    def reset(self) -> None:
        """Nothing is remembered."""

    def act(self, observation: Observation) -> TreeParameters:
        """The parameters."""
        return self.parameters


def fixed_tree(branch: int = 2, depth: int = 4, node_budget: int = 128, source: Source = "model") -> StaticController:
    """A complete tree whatever the text: `branch` children under every node, `depth` levels.

    Where prompt lookup alone is asked, what it does not find is missing.

    Args:
        branch: children of every node [nodes].
        depth: levels below the root [tokens].
        node_budget: most nodes verified, and most expanded in a level; of a larger tree the likeliest are kept [nodes].
        source: who proposes nodes, see `TreeParameters`.
    """
    return StaticController(
        TreeParameters(
            base_depth=depth,
            max_depth=depth,
            min_branch=branch,
            mid_branch=branch,
            max_branch=branch,
            frontier_width=node_budget,
            node_budget=node_budget,
            source=source,
        )
    )

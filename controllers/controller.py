"""What a controller is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from specgym.env.tree.observation import Observation
from specgym.env.tree.parameters import TreeParameters


@runtime_checkable
class Controller(Protocol):
    """Chooses the tree parameters of every round."""

    observes_draft: bool
    """whether it wants to see what the draft model says of the root, at the price of a draft forward every round,
    which the round makes use of unless it leaves the draft model out"""

    def reset(self) -> None:
        """A new request begins."""

    def act(self, observation: Observation) -> TreeParameters:
        """The parameters of the round that begins now."""

"""The protocol of a controller."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from specgym.env.tree.observation import Observation
from specgym.env.tree.parameters import TreeParameters


@runtime_checkable
class Controller(Protocol):
    """Chooses the tree parameters of every round."""

    observes_draft: bool
    """whether it observes the draft model's probabilities at the root, which costs a draft forward every round; the
    round reuses that forward unless it leaves the draft model out"""

    def reset(self) -> None:
        """Starts a new request."""

    def act(self, observation: Observation) -> TreeParameters:
        """Returns the parameters of the round that starts now."""


class Rule:
    """Base of controllers that do not observe the draft; what they learn is kept from request to request."""

    observes_draft = False

    def reset(self) -> None:
        """Starts a new request: nothing changes."""

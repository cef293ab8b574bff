"""Runs a trained policy as a controller, found by its name or its file."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from specgym.agents.policies.policy_file import SETTINGS, Policy, load_policy
from specgym.agents.policies.policy_network import PolicyNetwork
from specgym.controllers.registry import register, register_finder
from specgym.env.common.arrays import IntArray
from specgym.env.gym.features import feature_vector
from specgym.env.tree.observation import Observation
from specgym.env.tree.parameters import TreeParameters

SHIPPED = Path(__file__).parent / "shipped"
"""the shipped policies, each in a folder of its name"""


class PolicyController:
    """Takes the best choice of a policy: the highest logit of each head.

    Args:
        policy: the policy.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy, self.observes_draft = policy, policy.observes_draft
        self._form, self._network = policy.action_form, PolicyNetwork(policy.weights, policy.action_form.nvec)
        self._last: IntArray = self._form.first
        self._strides = policy.grid.strides
        self._parameters = [policy.grid.parameters(action) for action in np.ndindex(*policy.grid.nvec)]

    def reset(self) -> None:
        """Forgets the previous request."""
        self._network.reset()
        self._last = self._form.first

    def act(self, observation: Observation) -> TreeParameters:
        """Returns the parameters that the policy chooses."""
        entries = feature_vector(observation)
        if self._form.extra_names:
            entries = np.concatenate([entries, self._form.extra(self._last)])
        self._last = self._form.actions(self._last, self._network.choose(entries), observation)
        return self._parameters[int(self._last @ self._strides)]


def find_policy(specification: str) -> PolicyController | None:
    """Loads the policy in a folder or file of that name, or on the hub, ``hub:owner/name``. None if it is neither.

    Raises:
        ParameterError: the text after ``hub:`` is not a name on the hub.
        PolicyError: there is no policy, or one that cannot be used.
    """
    if specification.startswith("hub:"):
        from specgym.agents.policies.policy_hub import fetch_policy  # noqa: PLC0415 it imports torch

        return PolicyController(load_policy(fetch_policy(specification.removeprefix("hub:"))))
    path = Path(specification).expanduser()
    if path.suffix != ".json" and not (path / SETTINGS).is_file():
        return None
    return PolicyController(load_policy(path))


@functools.cache
def register_shipped() -> None:
    """Registers the shipped policies, once however often it is called."""
    register_policies(SHIPPED)


def register_policies(folder: Path) -> None:
    """Registers every policy in a folder under the name of its own folder, and finds any other policy by its path.

    Raises:
        ParameterError: a controller of that name exists already.
    """
    for settings in sorted(folder.glob(f"*/{SETTINGS}")):
        register(settings.parent.name, lambda path=settings: PolicyController(load_policy(path)), {})
    register_finder(find_policy)

"""A trained policy as a controller like any other, found by its name or by its file."""

from __future__ import annotations

import functools
from functools import partial
from pathlib import Path

import numpy as np

from specgym.agents.policies.policy_file import SETTINGS, Policy, load_policy
from specgym.agents.policies.policy_hub import fetch_policy
from specgym.controllers.registry import register, register_finder
from specgym.env.common.arrays import IntArray
from specgym.env.gym.features import feature_vector
from specgym.env.tree.observation import Observation
from specgym.env.tree.parameters import TreeParameters

SHIPPED = Path(__file__).parent / "shipped"
"""folder of the policies that are shipped, each in a folder named after it"""


class PolicyController:
    """Does what a policy thinks best: of every head the choice with the highest logit.

    Args:
        policy: the policy.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy, self.observes_draft = policy, policy.observes_draft
        self._form, self._network = policy.acting, policy.network()
        self._adds = bool(self._form.entries)
        self._current: IntArray = self._form.first
        self._strides = policy.grid.strides
        self._parameters = [policy.grid.parameters(action) for action in np.ndindex(*policy.grid.nvec)]

    def reset(self) -> None:
        """Forgets the request before."""
        self._network.reset()
        self._current = self._form.first

    def act(self, observation: Observation) -> TreeParameters:
        """What the policy chooses."""
        seen = feature_vector(observation)
        shown = np.concatenate([seen, self._form.shown(self._current)]) if self._adds else seen
        self._current = self._form.move(self._current, self._network.choose(shown), seen)
        return self._parameters[int(self._current @ self._strides)]


def find_policy(specification: str) -> PolicyController | None:
    """The policy in a folder or file of that name, or on the hub, ``hub:owner/name``; None if it is neither.

    Raises:
        ParameterError: what comes after ``hub:`` is no name of the hub's.
        PolicyError: there is no policy, or none that can be used.
    """
    if specification.startswith("hub:"):
        return PolicyController(load_policy(fetch_policy(specification.removeprefix("hub:"))))
    path = Path(specification).expanduser()
    if path.suffix != ".json" and not (path / SETTINGS).is_file():
        return None
    return PolicyController(load_policy(path))


@functools.cache
def register_shipped() -> None:
    """`register_policies` for those that are shipped, once however often it is called."""
    register_policies(SHIPPED)


def register_policies(folder: Path) -> None:
    """Makes every policy in a folder known by the name of its own folder, and any other by its path.

    Raises:
        ParameterError: a controller of that name is there already.
    """
    for settings in sorted(folder.glob(f"*/{SETTINGS}")):
        register(settings.parent.name, partial(_shipped, settings))
    register_finder(find_policy)


def _shipped(path: Path) -> PolicyController:
    return PolicyController(load_policy(path))

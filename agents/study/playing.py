"""Policies judged on many texts and machines at once, in the rows that any other controller's judgement has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specgym.agents.learning.envs import ObservationView
from specgym.agents.learning.validation import Act, Validation
from specgym.agents.policies.policy_file import Policy
from specgym.agents.policies.policy_network import Weights
from specgym.controllers.evaluation.ladder.replayed import prompt_row
from specgym.controllers.evaluation.results.schema import PromptRow
from specgym.env.common.arrays import BoolArray, IntArray
from specgym.env.common.errors import ParameterError
from specgym.env.gym.features import FeatureVector
from specgym.env.latency.latency_profile import LatencyProfile
from specgym.env.replay.traces.file import Trace


def play_policies(
    policies: Sequence[Policy], names: Sequence[str], trace: Trace, profiles: dict[str, LatencyProfile], split: str
) -> dict[str, list[PromptRow]]:
    """Rows of some policies that are alike but for their weights, by profile.

    Args:
        policies: the policies.
        names: what results call each.
        trace: with the texts.
        profiles: of the machines, by name.
        split: of the texts that are judged on.

    Raises:
        ParameterError: a policy has a memory.
        TraceError, UnrecordedError, UnmeasuredError: see `ReplayVectorEnv`.
    """
    first = policies[0]
    games = Validation(
        trace,
        list(profiles.values()),
        first.grid,
        ObservationView(first.acting),
        observes_draft=first.observes_draft,
        split=split,
    )
    texts = games.envs.envs.replays.texts
    rows: dict[str, list[PromptRow]] = {name: [] for name in profiles}
    for policy, called in zip(policies, names, strict=True):
        played = games.play(batch_act(policy.weights, first.acting.nvec))
        columns = (played.text, played.profile, played.seconds, played.rounds, played.drafted, played.accepted)
        for text, machine, seconds, rounds, drafted, accepted in zip(*columns, strict=True):
            nodes = int(drafted), int(accepted)
            rows[list(profiles)[machine]].append(prompt_row(called, texts[text], float(seconds), int(rounds), nodes))
    return rows


def batch_act(weights: Weights, nvec: IntArray) -> Act:
    """What `PolicyNetwork.choose` does, for many observations together. Raises `ParameterError` for a memory."""
    if "memory.input" in weights:
        raise ParameterError("Policies with a memory are judged one text at a time: use scripts.evaluate.")
    layers = sum(name.startswith("hidden.") and name.endswith(".weight") for name in weights)
    ends = np.cumsum(nvec)[:-1].tolist()

    def act(seen: FeatureVector, first: BoolArray) -> IntArray:
        x = seen
        for layer in range(layers):
            x = np.tanh(x @ weights[f"hidden.{layer}.weight"].T + weights[f"hidden.{layer}.bias"])
        logits = x @ weights["heads.weight"].T + weights["heads.bias"]
        return np.stack([head.argmax(axis=1) for head in np.split(logits, ends, axis=1)], axis=1)

    return act

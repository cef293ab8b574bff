"""The setup that the seeds of a training run share: texts, machines, and the tabulated outcomes of all actions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specgym.agents.learning.config import LearningPlan
from specgym.agents.learning.envs import HoldOutVectorEnv, ReplayVecEnv, Validation
from specgym.agents.policies.action_forms import make_form
from specgym.agents.policies.threshold_grid import ThresholdGrid
from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import ParameterError, UnknownNameError
from specgym.env.gym.grid import ActionSpace
from specgym.env.latency.families import drawn_machine
from specgym.env.latency.latency_profile import LatencyProfile
from specgym.env.replay.sources import find_profile, find_trace, profile_label, profile_names
from specgym.env.replay.tables.trace_table import check_covered
from specgym.env.replay.traces.file import Trace


class TrainingSetup:
    """Texts to learn from and to validate on, replayed on several machines.

    Args:
        traces: files of traces of one pair and one rule, or such a trace; the shipped one if there are none.
        profiles: names or files of latency profiles; all names if there are none.
        plan: the settings.
        held_out: names of machines that policies are validated on, but neither trained on nor chosen by.
        temperatures: temperatures of the texts; all if None.
        like: another setup with the same traces and temperatures, whose tables are reused if the grid is the same.

    Attributes:
        names: names of the machines that policies are validated on.
        all_names: these names, and those of the drawn machines.
        learned: names of the machines that policies are trained on.
        source: description of the data, for checkpoints.

    Raises:
        TraceError: a file cannot be read, or has no texts to learn from or to validate on.
        ProfileError, UnknownNameError: a profile cannot be found, or a held-out name is not among the profiles.
        ParameterError: the trace does not cover the grid, two profiles have the same name, or all are held out.
    """

    def __init__(
        self,
        traces: Sequence[Path] | Trace,
        profiles: Sequence[str],
        plan: LearningPlan,
        held_out: Sequence[str] = (),
        *,
        temperatures: Sequence[float] | None = None,
        like: TrainingSetup | None = None,
    ) -> None:
        trace = find_trace(traces if isinstance(traces, Trace) else list(traces) or None)
        if temperatures is not None:
            texts = [text for text in trace.texts if text.settings.temperature in temperatures]
            trace = Trace(trace.path, trace.header, texts)
        named, random = find_profiles(profiles), np.random.default_rng(0)  # draws the same machines for every setup
        machines, drawn = list(named.values()), [drawn_machine(random) for _ in range(plan.drawn_machines)]
        self.plan, self.names = plan, list(named)
        self.all_names = self.names + [f"drawn {number}" for number in range(len(drawn))]
        learned = _learned(self.names, held_out)
        if plan.form == "corrections":
            self.grid: ActionSpace = ThresholdGrid().covered(trace.header.rule)
        else:
            check_covered(plan.grid, trace.header)
            self.grid = plan.grid
        form = make_form(plan.form, self.grid)
        options: dict[str, Any] = {"grid": self.grid, "observes_draft": plan.observes_draft}
        envs = HoldOutVectorEnv(plan.config.episodes, traces=trace, profile=machines + drawn, **options)
        envs.machines = np.append(learned, len(machines) + np.arange(len(drawn)))
        self.learned = [self.all_names[index] for index in envs.machines]
        self.envs = ReplayVecEnv(envs, form, plan.without)
        self.validation = Validation(trace, machines, form, without=plan.without, counted=learned, **options)
        if like is not None and like.grid == self.grid:
            envs.replays.table = like.envs.envs.replays.table
            self.validation.envs.envs.replays.table = like.validation.envs.envs.replays.table
        tokens = sum(len(text.tokens) for text in envs.replays.texts)
        self.source = f"{trace.header} {len(envs.replays.texts)} texts of {tokens} tokens"
        if temperatures is not None:
            self.source += f" at {', '.join(f'{temperature:g}' for temperature in sorted(temperatures))}"
        if held_out:
            self.source += f", without {', '.join(sorted(held_out))}"


def find_profiles(names: Sequence[str]) -> dict[str, LatencyProfile]:
    """Finds latency profiles by their names or files, all named ones if there are none. Returns each by its label.

    Raises:
        ProfileError, UnknownNameError: see `find_profile`.
        ParameterError: two profiles have the same label, see `profile_label`.
    """
    profiles = {profile_label(name): find_profile(name) for name in names or profile_names()}
    if len(profiles) < len(names):
        raise ParameterError(f"Expected profiles of different names; got {', '.join(names)}.")
    return profiles


def _learned(names: Sequence[str], held_out: Sequence[str]) -> IntArray:
    """Returns the indices of the machines to learn on. Raises `UnknownNameError`, `ParameterError`."""
    for name in held_out:
        if name not in names:
            raise UnknownNameError("profile to hold out", name, names)
    learned = np.array([index for index, name in enumerate(names) if name not in held_out], np.int64)
    if not len(learned):
        raise ParameterError("Expected a profile to learn on; all of them are held out.")
    return learned

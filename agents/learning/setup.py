"""What all learners share: the texts, the machines, and the tables of what every action brings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from specgym.agents.learning.config import LearningPlan
from specgym.agents.learning.envs import DrawnMachines, LearningEnv
from specgym.agents.learning.learner import Learner
from specgym.agents.learning.validation import Validation
from specgym.agents.policies.corrections import CORRECTIONS
from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import ParameterError, UnknownNameError
from specgym.env.latency.families import drawn_machine
from specgym.env.latency.latency_profile import LatencyProfile
from specgym.env.replay.sources import find_profile, find_trace, profile_label
from specgym.env.replay.tabulation import check_covered
from specgym.env.replay.traces.file import Trace


class TrainingSetup:
    """Texts to learn from and to be judged on, played on some machines.

    Args:
        traces: files of traces of one pair by one rule, or such a trace; the shipped one if there are none.
        profiles: of the machines: names or files, one or more.
        plan: what is learned.
        held_out: what results call the machines that nothing is learned on; the policies are judged on them all the
            same, but not chosen by it.
        temperatures: of the texts; all if None.
        like: another classroom with the same traces and temperatures, whose tables are used on if they are of the same
            grid.

    Attributes:
        names: what the machines are called, without those that are drawn.
        source: what is learned from, as a checkpoint remembers it.

    Raises:
        TraceError: a file cannot be read, or has no texts to learn from or to be judged on.
        ProfileError, UnknownNameError: a profile cannot be found, or none that is held out is there.
        ParameterError: the trace does not cover the grid, two profiles have the same name, or all are held out.
    """

    def __init__(
        self,
        traces: Sequence[Path] | Trace,
        profiles: Sequence[str],
        plan: LearningPlan,
        *,
        held_out: Sequence[str] = (),
        temperatures: Sequence[float] | None = None,
        like: TrainingSetup | None = None,
    ) -> None:
        found = find_trace(traces if isinstance(traces, Trace) else list(traces) or None)
        trace, machines = _at(found, temperatures), [find_profile(name) for name in profiles]
        self.plan, self.names = plan, [profile_label(name) for name in profiles]
        if len(set(self.names)) < len(self.names) or not self.names:
            raise ParameterError(
                f"Expected one profile or more, of different names; got {', '.join(profiles) or 'none'}."
            )
        seen = _numbers(self.names, held_out)
        more = _drawn_machines(plan.drawn_machines)
        self.grid = plan.grid_for(trace.header)
        if plan.form != CORRECTIONS:
            check_covered(plan.grid, trace.header)
        lens = plan.lens(self.grid)
        envs = DrawnMachines(
            plan.config.episodes,
            traces=trace,
            profile=machines + list(more.values()),
            grid=self.grid,
            observes_draft=plan.observes_draft,
        )
        envs.drawn = np.append(seen, len(machines) + np.arange(len(more)))
        self.envs: LearningEnv = LearningEnv(envs, lens)
        self.validation = Validation(trace, machines, self.grid, lens, observes_draft=plan.observes_draft, counted=seen)
        self._all_names = [*self.names, *more]
        self._learned = [self._all_names[number] for number in envs.drawn]
        if like is not None and like.grid == self.grid:
            for mine, theirs in ((self.envs, like.envs), (self.validation.envs, like.validation.envs)):
                mine.envs.replays.table = theirs.envs.replays.table
        texts = envs.replays.texts
        self.source = f"{trace.header} {len(texts)} texts of {sum(len(text.tokens) for text in texts)} tokens"
        if temperatures is not None:
            self.source += f" at {', '.join(f'{each:g}' for each in sorted(temperatures))}"
        if held_out:
            self.source += f", without {', '.join(sorted(held_out))}"

    def tabulate(self, progress: Callable[[int, int], None] = lambda done, all_of_them: None) -> None:
        """Works out what every action brings, so that learning is all that takes time from then on.

        Args:
            progress: told how many sets of tree parameters are done, and how many there are.

        Raises:
            UnrecordedError, UnmeasuredError: a trace or a profile does not cover the grid.
        """
        self.envs.envs.tabulate_all(progress)

    def learner(self, seed: int, folder: Path) -> Learner:
        """One of the learners. Raises as `Learner` does."""
        return Learner(
            self.envs,
            self.validation,
            self._all_names,
            self.plan,
            seed=seed,
            folder=folder,
            source=self.source,
            learned=self._learned,
        )


def _at(trace: Trace, temperatures: Sequence[float] | None) -> Trace:
    """The texts of some temperatures."""
    if temperatures is None:
        return trace
    texts = [text for text in trace.texts if text.settings.temperature in temperatures]
    return Trace(trace.path, trace.header, texts)


def _drawn_machines(count: int) -> dict[str, LatencyProfile]:
    """Machines by name, the same every time and for every learner."""
    random = np.random.default_rng(0)
    return {f"drawn {number}": drawn_machine(random) for number in range(count)}


def _numbers(names: Sequence[str], held_out: Sequence[str]) -> IntArray:
    """Numbers of the machines that are learned on. Raises `UnknownNameError`, `ParameterError`."""
    for name in held_out:
        if name not in names:
            raise UnknownNameError("profile to hold out", name, names)
    left = [number for number, name in enumerate(names) if name not in held_out]
    if not left:
        raise ParameterError("Expected a profile to learn on; all of them are held out.")
    return np.array(left)

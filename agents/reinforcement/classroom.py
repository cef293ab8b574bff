"""What all learners share: the texts, the machines, and the tables of what every action brings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from agents.action_forms import make_form
from agents.reinforcement.config import LearningPlan
from agents.reinforcement.training import Learner
from agents.reinforcement.validation import Validation
from agents.vec_env import ReplayVecEnv
from env.errors import ParameterError
from env.recordings import find_profile, find_trace, profile_label
from env.tabulation import check_covered
from env.vector import ReplayVectorEnv

__all__ = ["Classroom"]


class Classroom:
    """Texts to learn from and to be judged on, played on some machines.

    Args:
        traces: files of traces of one pair by one rule; the shipped one if there are none.
        profiles: of the machines: names or files, one or more.
        plan: what is learned.

    Attributes:
        names: what the machines are called.
        source: what is learned from, as a checkpoint remembers it.

    Raises:
        TraceError: a file cannot be read, or has no texts to learn from or to be judged on.
        ProfileError, UnknownNameError: a profile cannot be found.
        ParameterError: the trace does not cover the grid, or two profiles have the same name.
    """

    def __init__(self, traces: Sequence[Path], profiles: Sequence[str], plan: LearningPlan) -> None:
        trace, machines = find_trace(list(traces) or None), [find_profile(name) for name in profiles]
        self.plan, self.names = plan, [profile_label(name) for name in profiles]
        if len(set(self.names)) < len(self.names) or not self.names:
            raise ParameterError(
                f"Expected one profile or more, of different names; got {', '.join(profiles) or 'none'}."
            )
        check_covered(plan.grid, trace.header)
        self.form = make_form(plan.form, plan.grid)
        envs = ReplayVectorEnv(
            plan.config.episodes,
            traces=trace,
            profile=machines,
            grid=plan.grid,
            observes_draft=plan.observes_draft,
        )
        self.envs = ReplayVecEnv(envs, self.form)
        self.validation = Validation(trace, machines, plan.grid, self.form, observes_draft=plan.observes_draft)
        texts = envs.replays.texts
        self.source = f"{trace.header} {len(texts)} texts of {sum(len(text.tokens) for text in texts)} tokens"

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
        return Learner(self.envs, self.validation, self.names, self.plan, seed=seed, folder=folder, source=self.source)

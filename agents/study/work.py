"""The work of the study, stage by stage: policies are trained, and everything is judged on the same texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from specgym.agents.learning.setup import TrainingSetup
from specgym.agents.learning.training_history import TrainingHistory
from specgym.agents.learning.training_report import best_seed
from specgym.agents.policies.corrections import CORRECTIONS
from specgym.agents.policies.policy_file import load_policy
from specgym.agents.study.plan import Lesson, StudyPlan
from specgym.agents.study.playing import play_policies
from specgym.agents.study.stages import Stages, rows_from, rows_record
from specgym.controllers.evaluation.ladder.replayed import BEST_STATIC, LadderEvaluation, best_static, ladder_names
from specgym.controllers.evaluation.results.schema import PromptRow
from specgym.env.common.errors import ParameterError
from specgym.env.replay.sources import choose_texts, find_profile, find_trace, profile_label
from specgym.env.replay.tabulation import covered_grid
from specgym.env.replay.traces.file import Trace
from specgym.env.tree.parameters import TreeParameters

Told = Callable[[str, int, int], None]
"""`told(what, done, all)`: how far a stage is"""
Rows = dict[str, list[PromptRow]]
"""rows by profile"""


@dataclasses.dataclass(frozen=True)
class Taught:
    """What became of a lesson."""

    lesson: Lesson
    """what was trained"""
    courses: dict[int, TrainingHistory]
    """how it went, by seed"""
    rows: dict[float, Rows]
    """how the policies did on the test split, by temperature and profile; controllers are `name#seed`"""
    best: int
    """seed of the policy that did best on the validation split"""


@dataclasses.dataclass(frozen=True)
class Judged:
    """How everything did that is not learned, on the test split at one temperature."""

    rows: Rows
    """by profile"""
    static: dict[str, dict[str, Any]]
    """the best static parameters by profile"""


class StudyWork:
    """A study under way.

    Args:
        plan: what is done.
        traces: files of traces of one pair by one rule; the shipped one if there are none.
        profiles: names or files of latency profiles.
        folder: for all that is under way.
        told: told how far it is.

    Attributes:
        names: what the machines are called.

    Raises:
        TraceError: a file cannot be read, or lacks texts of a split or a temperature.
        ProfileError, UnknownNameError: a profile cannot be found.
        ParameterError: two profiles have the same name, or `folder` holds another study.
    """

    def __init__(
        self,
        plan: StudyPlan,
        traces: Sequence[Path],
        profiles: Sequence[str],
        folder: Path,
        told: Told = lambda what, done, all_of_them: None,
    ) -> None:
        self.plan, self.told, self.folder, self.specified = plan, told, folder, list(profiles)
        self.names = [profile_label(name) for name in profiles]
        if len(set(self.names)) < len(self.names) or not self.names:
            raise ParameterError(f"Expected profiles of different names; got {', '.join(profiles) or 'none'}.")
        self.profiles = {profile_label(name): find_profile(name) for name in profiles}
        self.trace = self._chosen(find_trace(list(traces) or None))
        texts = [(text.identifier, text.settings.temperature, text.settings.seed) for text in self.trace.texts]
        tokens = sum(len(text.tokens) for text in self.trace.texts)
        about = f"{self.trace.header} {len(texts)} texts of {tokens} tokens"
        settings = {"plan": dataclasses.asdict(plan), "profiles": self.names, "texts": about}
        self.stages, self._rooms = Stages(folder, settings), dict[bool, TrainingSetup]()

    def _chosen(self, trace: Trace) -> Trace:
        """Texts of the plan's temperatures, and of the test split no more than its limit."""
        plan, kept = self.plan, []
        for temperature in plan.temperatures:
            kept += [text for text in trace.texts if text.split != "test" and text.settings.temperature == temperature]
            kept += choose_texts(trace.texts, "test", temperature)[: plan.limit]
        return Trace(trace.path, trace.header, kept)

    def judged(self, temperature: float) -> Judged:
        """Rules, best static parameters and bounds at a temperature. Raises as `LadderEvaluation` does."""
        record = self.stages.run(f"rules/t{temperature:g}", lambda: self._judge(temperature))
        return Judged(rows_from(record), record["static"])

    def _judge(self, temperature: float) -> dict[str, Any]:
        plan, header, machines = self.plan, self.trace.header, list(self.profiles.values())
        texts = choose_texts(self.trace.texts, "test", temperature)
        train = choose_texts(self.trace.texts, "train", temperature)[: plan.static_texts]
        names, grid = ladder_names(list(plan.rules)), self._grid()
        what, steps, done = f"rules at {temperature:g}", 2 * len(grid) + len(names) * len(machines), 0

        def advance(name: str = "") -> None:
            nonlocal done
            done += 1
            self.told(what, done, steps)

        costs = [profile.costs(texts[0].settings.greedy) for profile in machines]
        static = dict(zip(self.names, best_static(train, header, costs, grid, advance), strict=True))
        evaluation = LadderEvaluation(texts, header)
        bounds = dict(zip(self.names, evaluation.bounds(machines, grid, advance), strict=True))
        rows: Rows = {}
        for profile, machine in self.profiles.items():
            rows[profile] = []
            for name in names:
                bound = bounds[profile].get(name)
                chosen = static[profile] if name == BEST_STATIC else None
                rows[profile] += bound or evaluation.controller(name, machine, chosen)
                advance()
        chosen_by = {profile: parameters.record() for profile, parameters in static.items()}
        return rows_record(rows) | {"static": chosen_by}

    def _grid(self) -> list[TreeParameters]:
        """The static parameters there are, some values of each dimension of the grid that the trace covers."""
        whole, most = covered_grid(self.trace.header), self.plan.static_values
        dimensions = ("base_depth", "high_confidence", "early_stop")
        thinned: dict[str, Any] = {name: _spread(getattr(whole, name), most) for name in dimensions}
        return list(dataclasses.replace(whole, **thinned))

    def taught(self, lesson: Lesson) -> Taught:
        """The policies of a lesson, trained and judged. Raises as `Learner` does; Ctrl-C loses an unfinished part."""
        record = self.stages.run(f"lessons/{lesson.name}", lambda: self._teach(lesson))
        courses = {int(seed): TrainingHistory.of(course) for seed, course in record["courses"].items()}
        rows = {float(temperature): rows_from(found) for temperature, found in record["rows"].items()}
        return Taught(lesson, courses, rows, best_seed(courses))

    def _teach(self, lesson: Lesson) -> dict[str, Any]:
        room, folder = self._room(lesson), self.folder / "lessons" / lesson.name
        steps, courses = lesson.plan.part * lesson.plan.looks, {}
        for seed in range(lesson.seeds):

            def progress(played: int, course: TrainingHistory, done: int = seed) -> None:
                self.told(lesson.name, done * steps + played, lesson.seeds * steps)

            courses[seed] = room.learner(seed, folder / f"seed-{seed}").run(progress)
        policies = [load_policy(folder / f"seed-{seed}") for seed in courses]
        names = [f"{lesson.name}#{seed}" for seed in courses]
        rows = {
            f"{temperature:g}": rows_record(self._play(policies, names, temperature))
            for temperature in self.plan.temperatures
        }
        return {"courses": {str(seed): course.record() for seed, course in courses.items()}, "rows": rows}

    def _play(self, policies: Sequence[Any], names: Sequence[str], temperature: float) -> Rows:
        texts = choose_texts(self.trace.texts, "test", temperature)
        return play_policies(policies, names, Trace(self.trace.path, self.trace.header, texts), self.profiles, "test")

    def _room(self, lesson: Lesson) -> TrainingSetup:
        """A classroom, with the tables of another one if there is one on the same grid."""
        plan = lesson.plan
        key = plan.form == CORRECTIONS
        room = TrainingSetup(self.trace, self.specified, plan, held_out=lesson.held_out, like=self._rooms.get(key))
        room.tabulate(lambda done, count: self.told(f"tables of {lesson.name}", done, count))
        self._rooms.setdefault(key, room)
        return room


def _spread(values: Sequence[Any], most: int) -> tuple[Any, ...]:
    """At most so many of the values, the first and the last among them if there are two."""
    if len(values) <= most:
        return tuple(values)
    step = (len(values) - 1) / max(most - 1, 1)
    return tuple(values[round(index * step)] for index in range(most))

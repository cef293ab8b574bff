"""The work of the study, stage by stage: policies are trained, and every controller decodes the same texts."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specgym.agents.learning.envs import Validation
from specgym.agents.learning.learner import Learner
from specgym.agents.learning.setup import TrainingSetup, find_profiles
from specgym.agents.learning.training_history import TrainingHistory
from specgym.agents.policies.policy_file import Policy, load_policy
from specgym.agents.policies.policy_network import batch_act
from specgym.agents.study.plan import Recipe, StudyPlan
from specgym.controllers.evaluation.ladder.replayed import judge_ladder, ladder_names, ladder_steps, prompt_row
from specgym.controllers.evaluation.results.provenance import shareable
from specgym.controllers.evaluation.results.schema import PromptRow, decode
from specgym.env.common.errors import ModelFileError, ParameterError
from specgym.env.common.files import write_text
from specgym.env.gym.grid import ParameterGrid
from specgym.env.latency.latency_profile import LatencyProfile
from specgym.env.replay.sources import DEFAULT_TRACE, choose_texts, find_trace
from specgym.env.replay.traces.file import Trace
from specgym.env.tree.parameters import TreeParameters

Progress = Callable[[str, int, int], None]
"""`progress(stage, done, total)`, called after each step of a stage"""
Rows = dict[str, list[PromptRow]]
"""rows by profile"""


@dataclasses.dataclass(frozen=True)
class Trained:
    """The policies of a recipe after training."""

    recipe: Recipe
    histories: dict[int, TrainingHistory]
    """the course of the training, by seed"""
    rows: dict[float, Rows]
    """rows on the test split by temperature and profile; controllers are `name#seed`"""


@dataclasses.dataclass(frozen=True)
class RuleResults:
    """Results of everything that is not learned, on the test split at one temperature."""

    rows: Rows
    static: dict[str, dict[str, Any]]
    """the best static parameters by profile"""


class StudyWork:
    """A study in progress.

    Args:
        plan: its settings.
        traces: files of traces of one pair by one rule; the shipped trace if empty.
        profiles: names or files of latency profiles; all names if empty.
        folder: for checkpoints, policies and finished stages.
        progress: called after each step.

    Attributes:
        names: the names of the profiles.

    Raises:
        TraceError: a file cannot be read, or lacks texts of a split or a temperature.
        ProfileError, UnknownNameError: a profile cannot be found.
        ParameterError: two profiles have the same name, or `folder` holds another study.
    """

    def __init__(
        self, plan: StudyPlan, traces: Sequence[Path], profiles: Sequence[str], folder: Path, progress: Progress
    ) -> None:
        self.plan, self.folder, self._progress, self._traces, self._given = plan, folder, progress, traces, profiles
        self.profiles = find_profiles(profiles)
        self.names = list(self.profiles)
        self.trace = self._chosen(find_trace(list(traces) or None))
        tokens = sum(len(text.tokens) for text in self.trace.texts)
        texts = f"{self.trace.header} {len(self.trace.texts)} texts of {tokens} tokens"
        settings = {"plan": dataclasses.asdict(plan), "profiles": self.names, "texts": texts}
        _claim(folder / "study.json", json.dumps(settings, indent=1, sort_keys=True) + "\n")
        self._setups = dict[bool, TrainingSetup]()

    def facts(self) -> dict[str, Any]:
        """Returns the settings of the study as results report them."""
        plan, header, texts = self.plan, self.trace.header, self.trace.texts
        return {
            "traces": [shareable(str(path)) for path in self._traces] or [DEFAULT_TRACE.name],
            "profiles": self.names,
            "target": shareable(header.names[0]).rstrip("/").rpartition("/")[2],
            "draft": shareable(header.names[1]),
            "draft_kind": header.draft_kind,
            "dtype": header.dtype,
            "temperatures": list(plan.temperatures),
            "test_texts": sum(text.split == "test" for text in texts),
            "train_texts": sum(text.split == "train" for text in texts),
            **{name: getattr(plan, name) for name in ("seeds", "few_seeds", "steps", "hindsight_steps")},
        }

    def _chosen(self, trace: Trace) -> Trace:
        """Returns the texts of the plan's temperatures; of the test split at most the plan's limit."""
        texts = []
        for temperature in self.plan.temperatures:
            texts += [text for text in trace.texts if text.split != "test" and text.settings.temperature == temperature]
            texts += choose_texts(trace.texts, "test", temperature)[: self.plan.limit]
        return Trace(trace.path, trace.header, texts)

    def _stage(self, name: str, work: Callable[[], Any]) -> Any:
        """Returns the result of a stage; computes it if the stage is not finished.

        Args:
            name: the stage's name, with slashes for folders.
            work: computes the result, as JSON can hold it.

        Raises:
            ModelFileError: the file of a finished stage is corrupt.
            FileWriteError: the result could not be written.
        """
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_text(path, json.dumps(work(), allow_nan=False) + "\n")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelFileError(f"{path} is corrupt ({error}). Delete it and run the command again.") from error

    def rule_results(self, temperature: float) -> RuleResults:
        """Plays rules, best static parameters and bounds at a temperature. Raises as `judge_ladder` does."""
        record = self._stage(f"rules/t{temperature:g}", lambda: self._play_rules(temperature))
        return RuleResults(rows_from(record), record["static"])

    def _play_rules(self, temperature: float) -> dict[str, Any]:
        test = choose_texts(self.trace.texts, "test", temperature)
        train = choose_texts(self.trace.texts, "train", temperature)[: self.plan.static_texts]
        names, grid = ladder_names(list(self.plan.rules)), self._grid()
        steps, done = ladder_steps(names, len(self.profiles), grid), itertools.count(1)
        rows, static = judge_ladder(
            test,
            train,
            self.trace.header,
            names=names,
            profiles=self.profiles,
            grid=grid,
            progress=lambda name: self._progress(f"rules at {temperature:g}", next(done), steps),
        )
        return rows_record(rows) | {"static": {label: parameters.record() for label, parameters in static.items()}}

    def _grid(self) -> list[TreeParameters]:
        """Returns the static parameters to try: some values of each dimension of the grid that the trace covers."""
        grid, most = ParameterGrid().covered(self.trace.header.rule), self.plan.static_values
        dimensions = ("base_depth", "high_confidence", "early_stop")
        thinned: dict[str, Any] = {name: _spread(getattr(grid, name), most) for name in dimensions}
        return list(dataclasses.replace(grid, **thinned))

    def trained(self, recipe: Recipe) -> Trained:
        """Trains the policies of a recipe and plays the test split.

        Ctrl-C loses the unfinished part of a training. Raises as `Learner` does.
        """
        record = self._stage(f"lessons/{recipe.name}", lambda: self._train(recipe))
        histories = {int(seed): TrainingHistory.from_record(course) for seed, course in record["courses"].items()}
        rows = {float(temperature): rows_from(part) for temperature, part in record["rows"].items()}
        return Trained(recipe, histories, rows)

    def _train(self, recipe: Recipe) -> dict[str, Any]:
        name, setup, folder = recipe.name, self._setup(recipe), self.folder / "lessons" / recipe.name
        steps = recipe.plan.part * recipe.plan.evaluations
        folders = [folder / f"seed-{seed}" for seed in range(recipe.seeds)]
        histories: list[TrainingHistory] = []

        def progress(played: int, _: TrainingHistory) -> None:
            self._progress(name, len(histories) * steps + played, recipe.seeds * steps)

        for seed, path in enumerate(folders):
            histories.append(Learner(setup, seed, path).run(progress))
        policies, labels = [load_policy(path) for path in folders], [f"{name}#{seed}" for seed in range(recipe.seeds)]
        rows = {}
        for temperature in self.plan.temperatures:
            texts = Trace(self.trace.path, self.trace.header, choose_texts(self.trace.texts, "test", temperature))
            rows[f"{temperature:g}"] = rows_record(play_policies(policies, labels, texts, self.profiles, "test"))
        return {"courses": {str(seed): history.record() for seed, history in enumerate(histories)}, "rows": rows}

    def _setup(self, recipe: Recipe) -> TrainingSetup:
        """Prepares the training; it shares the tables of an earlier one on the same grid."""
        key = recipe.plan.form == "corrections"
        like = self._setups.get(key)
        setup = TrainingSetup(self.trace, self._given, recipe.plan, recipe.held_out, like=like)
        setup.envs.envs.tabulate_all(lambda done, total: self._progress(f"tables of {recipe.name}", done, total))
        self._setups.setdefault(key, setup)
        return setup


def _claim(path: Path, settings: str) -> None:
    """Writes the settings of a study to its folder, or refuses a folder that holds a study with other settings."""
    if not path.exists():
        write_text(path, settings)
    elif path.read_text(encoding="utf-8") != settings:
        raise ParameterError(
            f"{path.parent} holds a study with other settings, texts or machines. Delete it to start anew, or choose "
            "another run folder."
        )


def _spread(values: Sequence[Any], most: int) -> tuple[Any, ...]:
    """Returns at most `most` of the values, evenly spread, the first and the last among them if there are two."""
    places = np.linspace(0, len(values) - 1, min(len(values), most))
    return tuple(values[round(place)] for place in places.tolist())


def play_policies(
    policies: Sequence[Policy], names: Sequence[str], trace: Trace, profiles: dict[str, LatencyProfile], split: str
) -> dict[str, list[PromptRow]]:
    """Returns rows by profile of policies that differ by their weights only.

    Args:
        policies: the policies.
        names: the name of each in the rows.
        trace: the texts.
        profiles: latency profiles by name.
        split: the split to play.

    Raises:
        ParameterError: a policy has a memory.
        TraceError, UnrecordedError, UnmeasuredError: see `ReplayVectorEnv`.
    """
    acting, observes_draft = policies[0].action_form, policies[0].observes_draft
    validation = Validation(
        trace, list(profiles.values()), acting, split=split, grid=policies[0].grid, observes_draft=observes_draft
    )
    texts, labels = validation.envs.envs.replays.texts, list(profiles)
    rows: dict[str, list[PromptRow]] = {label: [] for label in labels}
    for policy, name in zip(policies, names, strict=True):
        played = validation.play(batch_act(policy.weights, acting.nvec))
        columns = (played.text, played.profile, played.seconds, played.rounds, played.drafted, played.accepted)
        for text, profile, seconds, rounds, *nodes in zip(*(column.tolist() for column in columns), strict=True):
            rows[labels[profile]].append(prompt_row(name, texts[text], seconds, rounds, tuple(nodes)))
    return rows


def rows_record(rows: Mapping[str, list[PromptRow]]) -> dict[str, Any]:
    """Returns rows by profile as JSON can hold them: a list of values a row."""
    names = [field.name for field in dataclasses.fields(PromptRow)]
    values = {profile: [[getattr(row, name) for name in names] for row in part] for profile, part in rows.items()}
    return {"names": names, "rows": values}


def rows_from(record: Mapping[str, Any]) -> dict[str, list[PromptRow]]:
    """Reads what `rows_record` returned. Raises `ParameterError` for a row that cannot be."""
    names = record["names"]
    return {
        profile: [decode(PromptRow, dict(zip(names, row, strict=True)), profile) for row in part]
        for profile, part in record["rows"].items()
    }

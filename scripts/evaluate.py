"""Evaluates controllers on recorded texts, from plain decoding to the clairvoyant bound."""

from __future__ import annotations

import datetime
import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from specgym.env.common.errors import UnknownNameError, check_limit
from specgym.env.common.files import check_writable
from specgym.scripts.common import main, say, show
from specgym.scripts.progress import progress

if TYPE_CHECKING:
    from specgym.controllers.evaluation.results.schema import PromptRow, Results
    from specgym.env.replay.traces.file import Trace
    from specgym.env.replay.traces.records import TraceText

ALL = "all"


@dataclass(frozen=True)
class EvaluateOptions:
    """Predicts the time of every controller on recorded texts, and that of the best possible one."""

    traces: tuple[Path, ...] = ()
    """traces of one pair, recorded with the same settings; by default the shipped one"""
    profiles: tuple[str, ...] = ()
    """latency profiles: names, files of specgym measure-latency, or "all" for all names; by default the one that is
    nearest to this machine"""
    split: str = "test"
    """train, validation or test: the texts that are judged on"""
    temperatures: tuple[float, ...] = (0.0, 1.0)
    """temperatures, each judged apart"""
    controllers: str | None = None
    """comma-separated names, with options as in fixed_tree:branch=3:depth=2; by default all registered ones"""
    static_texts: int = 64
    """texts of the train split that the best static parameters are chosen by"""
    limit: int | None = None
    """most texts that are judged on; by default all"""
    output: Path = Path("runs/evaluation")
    """folder for the results, which holds a folder for each profile and temperature"""


@dataclass(frozen=True)
class _Task:
    """Texts of one temperature, which are judged together."""

    temperature: float
    judged: list[TraceText]
    train: list[TraceText]


def evaluate(options: EvaluateOptions) -> int:
    """Judges and writes; returns the exit status."""
    from specgym.controllers.evaluation.ladder.replayed import judge_ladder, ladder_names, ladder_steps
    from specgym.controllers.evaluation.results.report import table, write_results
    from specgym.controllers.registry import controller_names
    from specgym.env.gym.grid import ParameterGrid
    from specgym.env.replay.sources import find_profile, find_trace, profile_label
    from specgym.env.replay.traces.records import SPLITS

    started = datetime.datetime.now(datetime.timezone.utc)
    names = ladder_names(options.controllers.split(",") if options.controllers else list(controller_names()))
    check_limit("static_texts", options.static_texts)
    if options.split not in SPLITS:
        raise UnknownNameError("split", options.split, SPLITS)
    trace = find_trace(options.traces or None)
    profiles = {profile_label(name): find_profile(name) for name in _profile_names(options, trace)}
    check_writable(options.output)
    grid = list(ParameterGrid().covered(trace.header.rule))
    tasks = [_task(trace, options, each) for each in options.temperatures]
    if not options.profiles:
        say(f"Judging on {', '.join(profiles)}, the latency profile nearest to this machine; --profiles all takes all.")
    for task in tasks:
        with progress() as stages:
            step = stages.counter(f"temperature {task.temperature:g}", ladder_steps(names, len(profiles), grid))
            texts = task.judged, task.train, trace.header
            rows, static = judge_ladder(*texts, names=names, profiles=profiles, grid=grid, progress=step)
        for profile in profiles:
            settings = _settings(options, trace, task) | {"profile": profile, "best_static": asdict(static[profile])}
            results = _results(profile, rows[profile], names, settings, started)
            write_results(results, options.output / f"{profile}-t{task.temperature:g}")
            show(table(results))
    say(f"Written to {options.output}/")
    return 0


def _profile_names(options: EvaluateOptions, trace: Trace) -> list[str]:
    """The profiles to judge on, without names that "all" repeats."""
    from specgym.env.replay.sources import nearest_profile, profile_names

    if not options.profiles:
        return [nearest_profile(trace.header.dtype)]
    names = [every for name in options.profiles for every in (profile_names() if name == ALL else [name])]
    return list(dict.fromkeys(names))


def _task(trace: Trace, options: EvaluateOptions, temperature: float) -> _Task:
    """The texts of a temperature. Raises `TraceError` if there are none to judge on or to choose by."""
    from specgym.env.replay.sources import choose_texts

    judged = _mixed(choose_texts(trace.texts, options.split, temperature), options.limit)
    train = _mixed(choose_texts(trace.texts, "train", temperature), options.static_texts)
    return _Task(temperature, judged, train)


def _mixed(texts: list[TraceText], most: int | None) -> list[TraceText]:
    """At most so many texts, of all kinds of task in turn."""
    kinds: dict[str, list[TraceText]] = {}
    for text in texts:
        kinds.setdefault(text.category, []).append(text)
    rounds = itertools.zip_longest(*kinds.values())
    return [text for texts in rounds for text in texts if text is not None][:most]


def _results(
    profile: str, rows: list[PromptRow], names: list[str], settings: dict[str, object], started: datetime.datetime
) -> Results:
    from specgym.controllers.evaluation.results.provenance import typed_facts
    from specgym.controllers.evaluation.results.schema import Results
    from specgym.controllers.evaluation.results.statistics import summarise
    from specgym.controllers.registry import BASELINE

    return Results(
        **typed_facts(started, "replay"),
        kind="evaluation",
        complete=True,
        suite=profile,
        settings=settings,
        baseline=BASELINE,
        controllers=summarise(rows, [], BASELINE, names),
        rows=rows,
        failures=[],
    )


def _settings(options: EvaluateOptions, trace: Trace, task: _Task) -> dict[str, object]:
    from specgym.controllers.evaluation.results.provenance import shareable
    from specgym.env.replay.sources import DEFAULT_TRACE

    header = trace.header
    return {
        "traces": [shareable(str(path)) for path in options.traces or [DEFAULT_TRACE.name]],
        "target": shareable(header.names[0]),
        "draft": shareable(header.names[1]),
        "draft_kind": header.draft_kind,
        "dtype": header.dtype,
        "temperature": task.temperature,
        "prompts": options.split,
        "prompt_count": len(task.judged),
        "max_new_tokens": max(text.max_new_tokens for text in task.judged),
    }


if __name__ == "__main__":
    main(evaluate)

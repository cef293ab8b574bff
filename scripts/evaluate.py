"""Judges controllers on recorded texts, from plain decoding up to the clairvoyant, on any machine's latency profile."""

from __future__ import annotations

import datetime
import itertools
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from specgym.controllers.evaluation.ladder.replayed import (
    BEST_STATIC,
    BOUNDS,
    LadderEvaluation,
    Progressed,
    best_static,
    ladder_names,
)
from specgym.controllers.evaluation.live.paired_runs import BASELINE
from specgym.controllers.evaluation.results.provenance import (
    command_line,
    git_revision,
    library_versions,
    machine,
    shareable,
)
from specgym.controllers.evaluation.results.report import table, write_results
from specgym.controllers.evaluation.results.schema import PromptRow, Results
from specgym.controllers.evaluation.results.statistics import summarise
from specgym.controllers.registry import controller_names
from specgym.env.common.errors import UnknownNameError
from specgym.env.common.files import check_writable
from specgym.env.latency.latency_profile import LatencyProfile
from specgym.env.replay.sources import (
    DEFAULT_TRACE,
    choose_texts,
    find_profile,
    find_trace,
    profile_label,
    profile_names,
)
from specgym.env.replay.tabulation import covered_grid
from specgym.env.replay.traces.file import Trace
from specgym.env.replay.traces.records import SPLITS, TraceText
from specgym.env.tree.parameters import TreeParameters
from specgym.env.tree.rounds import check_limit
from specgym.scripts.common import console, main


@dataclass(frozen=True)
class EvaluateOptions:
    """Predicts what every controller would take for recorded texts, and what the best possible one would."""

    traces: tuple[Path, ...] = ()
    """traces of one pair, recorded with the same settings; by default the shipped one"""
    profiles: tuple[str, ...] = field(default_factory=lambda: tuple(profile_names()))
    """latency profiles: names, or files of scripts.measure_latency"""
    split: str = "test"
    """train, validation or test: the texts that are judged on"""
    temperatures: tuple[float, ...] = (0.0, 1.0)
    """temperatures, each judged apart"""
    controllers: str | None = None
    """comma-separated names, with options as in fixed_tree:branch=3:depth=2; all registered ones by default"""
    static_texts: int = 64
    """texts of the train split that the best static parameters are chosen by"""
    limit: int | None = None
    """most texts that are judged on; all by default"""
    output: Path = Path("results/evaluation")
    """folder that the results are written to, in a folder for each profile and temperature"""


@dataclass(frozen=True)
class _Ladder:
    """What is compared, on which machines."""

    trace: Trace
    names: list[str]
    profiles: dict[str, LatencyProfile]
    grid: list[TreeParameters]


@dataclass(frozen=True)
class _Task:
    """What is judged together: the texts of one temperature."""

    temperature: float
    judged: list[TraceText]
    train: list[TraceText]


def evaluate(options: EvaluateOptions) -> int:
    """Judges and writes; returns the exit status."""
    started = datetime.datetime.now(datetime.timezone.utc)
    names = ladder_names(options.controllers.split(",") if options.controllers else list(controller_names()))
    check_limit("static_texts", options.static_texts)
    if options.split not in SPLITS:
        raise UnknownNameError("split", options.split, SPLITS)
    profiles = {profile_label(name): find_profile(name) for name in options.profiles}
    trace = find_trace(options.traces or None)
    check_writable(options.output)
    ladder = _Ladder(trace, names, profiles, list(covered_grid(trace.header)))
    for task in [_task(trace, options, temperature) for temperature in options.temperatures]:
        rows, chosen = _judge_with_bar(ladder, task)
        for profile in profiles:
            results = Results(
                kind="evaluation",
                complete=True,
                suite=profile,
                started_at=started.isoformat(timespec="seconds"),
                command=command_line(),
                git_revision=git_revision(),
                versions=library_versions(),
                machine=machine("replay"),
                settings=_settings(options, trace, task) | {"profile": profile, BEST_STATIC: asdict(chosen[profile])},
                baseline=BASELINE,
                controllers=summarise(rows[profile], [], BASELINE, names),
                rows=rows[profile],
                failures=[],
            )
            Console().print(table(results))
            write_results(results, options.output / f"{profile}-t{task.temperature:g}")
    console.print(f"Written to {options.output}/", markup=False, soft_wrap=True)
    return 0


def _judge_with_bar(ladder: _Ladder, task: _Task) -> tuple[dict[str, list[PromptRow]], dict[str, TreeParameters]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        steps = 2 * len(ladder.grid) + len(ladder.profiles) * (len(ladder.names) - len(BOUNDS))
        shown = bar.add_task(f"temperature {task.temperature:g}", total=steps)
        return _judge(ladder, task, lambda name: bar.advance(shown))


def _judge(
    ladder: _Ladder, task: _Task, progress: Progressed
) -> tuple[dict[str, list[PromptRow]], dict[str, TreeParameters]]:
    """Rows of every rung and the best static parameters, by profile."""
    header, profiles, grid = ladder.trace.header, ladder.profiles, ladder.grid
    machines = [profile.costs(task.temperature == 0) for profile in profiles.values()]
    chosen = dict(zip(profiles, best_static(task.train, header, machines, grid, progress), strict=True))
    evaluation = LadderEvaluation(task.judged, header)
    bounds = dict(zip(profiles, evaluation.bounds(list(profiles.values()), grid, progress), strict=True))
    rows: dict[str, list[PromptRow]] = {}
    for name, profile in profiles.items():
        rows[name] = []
        for controller in ladder.names:
            if controller in BOUNDS:
                rows[name] += bounds[name][controller]
                continue
            static = chosen[name] if controller == BEST_STATIC else None
            rows[name] += evaluation.controller(controller, profile, static)
            progress(controller)
    return rows, chosen


def _task(trace: Trace, options: EvaluateOptions, temperature: float) -> _Task:
    """The texts of a temperature. Raises `TraceError` if there are none to judge on or to choose by."""
    judged = _spread(choose_texts(trace.texts, options.split, temperature), options.limit)
    train = _spread(choose_texts(trace.texts, "train", temperature), options.static_texts)
    return _Task(temperature, judged, train)


def _spread(texts: list[TraceText], most: int | None) -> list[TraceText]:
    """At most so many texts, of all kinds of task in turn."""
    kinds: dict[str, list[TraceText]] = {}
    for text in texts:
        kinds.setdefault(text.category, []).append(text)
    rounds = itertools.zip_longest(*kinds.values())
    return [text for texts in rounds for text in texts if text is not None][:most]


def _settings(options: EvaluateOptions, trace: Trace, task: _Task) -> dict[str, object]:
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
    main(EvaluateOptions, evaluate)

"""Judges controllers on recorded texts, from plain decoding up to the clairvoyant, on any machine's latency profile."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from controllers.evaluation.benchmark import BASELINE
from controllers.evaluation.provenance import command_line, git_revision, library_versions, machine, shareable
from controllers.evaluation.replays import (
    BEST_STATIC,
    BOUNDS,
    Evaluation,
    Progressed,
    best_static,
    ladder_names,
    playable,
)
from controllers.evaluation.report import table, write_results
from controllers.evaluation.schema import PromptRow, Results
from controllers.evaluation.statistics import summarise
from controllers.registry import controller_names
from env.errors import TraceError, UnknownNameError
from env.files import check_writable
from env.latency.families import FAMILIES
from env.latency.profile import LatencyProfile, load_profile
from env.parameters import TreeParameters
from env.rounds import check_limit
from env.tabulation import covered_grid
from env.traces.file import Trace, read_trace
from env.traces.records import SPLITS, TraceText
from scripts.common import console, main


@dataclass(frozen=True)
class EvaluateOptions:
    """Predicts what every controller would take for recorded texts, and what the best possible one would."""

    traces: tuple[Path, ...]
    """traces of one pair, recorded with the same settings"""
    profiles: tuple[str, ...] = tuple(FAMILIES)
    """latency profiles: files of scripts.calibrate, or names of parametric families"""
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
    profiles = {_called(name): _profile(name) for name in options.profiles}
    trace = _read(options.traces)
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
    evaluation = Evaluation(task.judged, header)
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
    texts = [text for text in trace.texts if text.settings.temperature == temperature]
    judged = _spread([text for text in texts if text.split == options.split], options.limit)
    train = _spread([text for text in texts if text.split == "train"], options.static_texts)
    if not playable(judged) or not playable(train):
        there = sorted({(text.split, text.settings.temperature) for text in trace.texts})
        raise TraceError(
            f"Expected texts of temperature {temperature:g} in the splits {options.split} and train; the trace has "
            f"{', '.join(f'{split} at {heat:g}' for split, heat in there)}. Record more with scripts.record."
        )
    return _Task(temperature, judged, train)


def _spread(texts: list[TraceText], most: int | None) -> list[TraceText]:
    """At most so many texts, of all kinds of task in turn."""
    kinds: dict[str, list[TraceText]] = {}
    for text in texts:
        kinds.setdefault(text.category, []).append(text)
    rounds = itertools.zip_longest(*kinds.values())
    return [text for texts in rounds for text in texts if text is not None][:most]


def _profile(name: str) -> LatencyProfile:
    return FAMILIES[name]() if name in FAMILIES else load_profile(Path(name))


def _called(name: str) -> str:
    """What results call a profile: the family's name, or the file's."""
    return name if name in FAMILIES else Path(name).stem


def _read(paths: Sequence[Path]) -> Trace:
    """All traces as one. Raises `TraceError` if they are of different pairs or settings."""
    first, *others = (read_trace(path) for path in paths)
    for other in others:
        if other.header != first.header:
            raise TraceError(
                f"{other.path} and {first.path} are traces of different pairs or rules: evaluate them apart."
            )
    return Trace(first.path, first.header, [text for trace in (first, *others) for text in trace.texts])


def _settings(options: EvaluateOptions, trace: Trace, task: _Task) -> dict[str, object]:
    header = trace.header
    return {
        "traces": [shareable(str(path)) for path in options.traces],
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

"""Reproduces the study of learned controllers: what they bring over rules, on which machines, and why."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from specgym.agents.study.findings import findings
from specgym.agents.study.plan import StudyPlan
from specgym.agents.study.study_report import SCHEMA, write_study
from specgym.agents.study.work import StudyWork
from specgym.controllers.evaluation.results.provenance import run_facts, shareable
from specgym.env.common.files import check_writable
from specgym.env.replay.sources import DEFAULT_TRACE, profile_names
from specgym.scripts.common import console, main, set_threads


@dataclass(frozen=True)
class StudyOptions:
    """Trains and judges everything that the study compares. Run it again to go on: what is done is not done again."""

    traces: tuple[Path, ...] = ()
    """traces of one pair, recorded with the same settings; by default the shipped one"""
    profiles: tuple[str, ...] = field(default_factory=lambda: tuple(profile_names()))
    """latency profiles to learn and to judge on: names, or files of scripts.measure_latency"""
    run: Path = Path("runs/study")
    """folder for what is under way: checkpoints, policies, finished stages"""
    output: Path = Path("results/study")
    """folder that the results are written to"""
    quick: bool = False
    """a study in minutes, whose numbers show that it works and no more; it overrides what it makes smaller"""
    threads: int | None = None
    """threads of one operation; torch's own choice by default"""
    plan: Annotated[StudyPlan, tyro.conf.arg(name="")] = field(default_factory=StudyPlan)


def study(options: StudyOptions) -> int:
    """Does what is missing and writes the results; returns the exit status."""
    started = datetime.datetime.now(datetime.timezone.utc)
    set_threads(options.threads)
    plan = options.plan.quick() if options.quick else options.plan
    check_writable(options.run)
    check_writable(options.output)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console)
    work = StudyWork(plan, options.traces, options.profiles, options.run, _Shown(bar, {}))
    with bar:
        judged = {temperature: work.judged(temperature) for temperature in plan.temperatures}
        taught = {lesson.name: work.taught(lesson) for lesson in plan.lessons(work.names, work.trace.header)}
    record: dict[str, Any] = {
        "schema": SCHEMA,
        **run_facts(started, "replay"),
        "preset": "quick" if options.quick else "default",
        "settings": _settings(options, plan, work),
        **findings(plan, judged, taught),
    }
    write_study(record, options.output)
    Console().print(_table(record))
    console.print(f"Written to {options.output}/", markup=False, soft_wrap=True)
    return 0


@dataclass(frozen=True)
class _Shown:
    """Tells the progress bar, a line for every stage that takes time."""

    bar: Progress
    tasks: dict[str, TaskID]

    def __call__(self, what: str, done: int, all_of_them: int) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(what)
        self.bar.update(self.tasks[what], completed=done, total=all_of_them)


def _settings(options: StudyOptions, plan: StudyPlan, work: StudyWork) -> dict[str, Any]:
    header, texts = work.trace.header, work.trace.texts
    return {
        "traces": [shareable(str(path)) for path in options.traces or [DEFAULT_TRACE.name]],
        "profiles": work.names,
        "target": shareable(header.names[0]).rstrip("/").rpartition("/")[2],
        "draft": shareable(header.names[1]),
        "draft_kind": header.draft_kind,
        "dtype": header.dtype,
        "temperatures": list(plan.temperatures),
        "test_texts": sum(text.split == "test" for text in texts),
        "train_texts": sum(text.split == "train" for text in texts),
        "seeds": plan.seeds,
        "few_seeds": plan.few_seeds,
        "steps": plan.steps,
        "hindsight_steps": plan.hindsight_steps,
    }


def _table(record: dict[str, Any]) -> Table:
    """Learned policies against the rules to beat, over all machines and temperatures."""
    learned = record["overall"]["learned"]
    rivals = list(learned[record["chosen"]]["against"])
    table = Table(
        "policy", "speed-up", *(f"over {rival}" for rival in rivals), title="Learned policies on the test split"
    )
    for name, each in learned.items():
        cells = [each["over_texts"], *(each["against"][rival] for rival in rivals)]
        table.add_row(name, *(_cell(cell) for cell in cells))
    return table


def _cell(each: dict[str, Any]) -> str:
    ends = "" if each["interval"] is None else f" [{each['interval'][0]:.3f}, {each['interval'][1]:.3f}]"
    return f"{each['ratio']:.3f}{ends}"


if __name__ == "__main__":
    main(StudyOptions, study)

"""Trains policies by reinforcement learning on recorded texts, and keeps the best as a file that any command takes."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from specgym.agents.learning.algorithms import check_installed
from specgym.agents.learning.config import LearningPlan
from specgym.agents.learning.setup import TrainingSetup
from specgym.agents.learning.training_history import TrainingHistory
from specgym.agents.learning.training_report import RESULTS, best_seed, keep_best, speed, write_report
from specgym.agents.policies.policy_file import SETTINGS
from specgym.agents.policies.policy_hub import check_pushable, push_policy
from specgym.controllers.evaluation.results.provenance import shareable
from specgym.env.common.files import check_writable
from specgym.env.replay.sources import profile_names
from specgym.env.tree.rounds import check_limit
from specgym.scripts.common import console, main, set_threads


@dataclass(frozen=True)
class TrainOptions:
    """Trains policies on recorded texts. Run it again to go on after an interruption: nothing that is done is lost."""

    traces: tuple[Path, ...] = ()
    """traces of one pair, recorded with the same settings; by default the shipped one"""
    profiles: tuple[str, ...] = field(default_factory=lambda: tuple(profile_names()))
    """machines to learn for, drawn for every episode: files of measure-latency, or names of parametric families"""
    held_out: tuple[str, ...] = ()
    """names of those machines among them that nothing is learned on: policies are judged on them, and not chosen by
    it"""
    temperatures: tuple[float, ...] | None = None
    """temperatures of the texts to learn from; all by default"""
    seeds: int = 5
    """policies that are trained, each from a seed of its own, beginning with 0"""
    output: Path = Path("runs/train")
    """folder for checkpoints, policies and results"""
    push: str | None = None
    """owner/name on the Hugging Face hub that the best policy is pushed to"""
    threads: int | None = None
    """threads of one operation; torch's own choice by default"""
    plan: Annotated[LearningPlan, tyro.conf.arg(name="")] = field(default_factory=LearningPlan)


def train(options: TrainOptions) -> int:
    """Trains, judges and writes; returns the exit status."""
    started = datetime.datetime.now(datetime.timezone.utc)
    check_limit("seeds", options.seeds)
    set_threads(options.threads)
    check_installed(options.plan)
    if options.push is not None:
        check_pushable(options.push)
    check_writable(options.output)
    classroom = TrainingSetup(
        options.traces,
        options.profiles,
        options.plan,
        held_out=options.held_out,
        temperatures=options.temperatures,
    )
    learners = [classroom.learner(seed, options.output / f"seed-{seed}") for seed in range(options.seeds)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    courses: dict[int, TrainingHistory] = {}
    with Progress(*columns, console=console) as bar:
        tables = bar.add_task("tabulating", total=None)
        classroom.tabulate(lambda done, count: bar.update(tables, completed=done, total=count))
        for seed, learner in enumerate(learners):
            shown = bar.add_task(f"seed {seed}", total=options.plan.part * options.plan.looks)
            courses[seed] = learner.run(_Shown(bar, shown, seed))
    keep_best(options.output, options.output / f"seed-{best_seed(courses)}")
    about: dict[str, object] = {
        "traces": [shareable(str(path)) for path in options.traces],
        "profiles": classroom.names,
    }
    about |= {"held_out": list(options.held_out)} if options.held_out else {}
    about |= {"temperatures": list(options.temperatures)} if options.temperatures else {}
    write_report(options.output, courses, options.plan, about, started)
    Console().print(_table(courses, classroom.names))
    found = speed(list(courses.values()))
    console.print(
        f"{found['steps_per_second']:,.0f} rounds a second, updates included; within 2 % of the last throughput after "
        f"{found['minutes_to_within_2_percent']:.1f} minutes (medians over the seeds).",
        markup=False,
        soft_wrap=True,
    )
    console.print(f"Written to {options.output}/: {SETTINGS}, {RESULTS}", markup=False, soft_wrap=True)
    if options.push is not None:
        console.print(f"Pushed to {push_policy(options.output, options.push)}", markup=False, soft_wrap=True)
    return 0


@dataclass(frozen=True)
class _Shown:
    """Tells the progress bar."""

    bar: Progress
    task: TaskID
    seed: int

    def __call__(self, steps: int, course: TrainingHistory) -> None:
        score = f", throughput {course.looks[-1].score:.3f}" if course.looks else ""
        self.bar.update(self.task, completed=steps, description=f"seed {self.seed}{score}")


def _table(courses: dict[int, TrainingHistory], names: list[str]) -> Table:
    """Throughput of each seed's best policy on the validation split."""
    table = Table("seed", *names, "steps", "steps/s", title="Throughput on the validation split [tokens / plain step]")
    for seed, course in courses.items():
        last, best = course.looks[-1], course.best
        speeds = [f"{best.throughput[name]:.3f}" for name in names]
        table.add_row(str(seed), *speeds, f"{best.steps:,}", f"{last.steps / last.seconds:,.0f}")
    return table


if __name__ == "__main__":
    main(TrainOptions, train)

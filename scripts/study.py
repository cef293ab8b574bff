"""Reproduces the study: what learned controllers gain over rules, on which machines, and why."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from specgym.agents.study.plan import StudyPlan
from specgym.env.common.files import check_writable
from specgym.scripts.common import main, say, show
from specgym.scripts.options import set_threads
from specgym.scripts.progress import progress


@dataclass(frozen=True)
class StudyOptions:
    """Trains and evaluates everything that the study compares. Run it again to go on: finished work is not repeated."""

    traces: tuple[Path, ...] = ()
    """traces of one pair, recorded with the same settings; by default the shipped one"""
    profiles: tuple[str, ...] = ()
    """latency profiles to learn and to evaluate on: files of `specgym measure-latency`, or names; by default
    all names"""
    run: Path = Path("runs/study")
    """folder for unfinished work: checkpoints, policies, finished stages"""
    output: Path = Path("runs/study/results")
    """folder for the results"""
    quick: bool = False
    """a study in minutes that shows only that everything works; it overrides the options that it makes smaller"""
    threads: int | None = None
    """threads of one operation; by default torch's own choice"""
    plan: Annotated[StudyPlan, tyro.conf.arg(name="")] = field(default_factory=StudyPlan)


def study(options: StudyOptions) -> int:
    """Does what is missing and writes the results; returns the exit status."""
    from specgym.agents.study.findings import findings
    from specgym.agents.study.study_report import SCHEMA, summary, write_study
    from specgym.agents.study.work import StudyWork
    from specgym.controllers.evaluation.results.provenance import run_facts

    started = datetime.datetime.now(datetime.timezone.utc)
    set_threads(options.threads)
    plan = options.plan.quick() if options.quick else options.plan
    check_writable(options.run)
    check_writable(options.output)
    with progress() as stages:
        work = StudyWork(plan, options.traces, options.profiles, options.run, stages)
        rules = {temperature: work.rule_results(temperature) for temperature in plan.temperatures}
        trained = {recipe.name: work.trained(recipe) for recipe in plan.recipes(work.names, work.trace.header.rule)}
    record: dict[str, Any] = {
        "schema": SCHEMA,
        **run_facts(started, "replay"),
        "preset": "quick" if options.quick else "default",
        "settings": work.facts(),
        **findings(plan, rules, trained),
    }
    write_study(record, options.output)
    show(summary(record))
    say(f"Written to {options.output}/")
    return 0


if __name__ == "__main__":
    main(study)

"""What a command that trained some policies leaves behind: the best of them, and how all of them went, as JSON."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from specgym.agents.learning.config import LearningPlan
from specgym.agents.learning.training_history import TrainingHistory
from specgym.agents.policies.policy_file import SETTINGS, WEIGHTS
from specgym.controllers.evaluation.results.provenance import run_facts
from specgym.env.common.files import atomic_path, write_text

RESULTS = "training.json"


def best_seed(courses: Mapping[int, TrainingHistory]) -> int:
    """The seed whose policy scored highest on the validation split."""
    return max(courses, key=lambda seed: courses[seed].best.score)


def keep_best(folder: Path, best: Path) -> None:
    """Copies the policy in `best` to `folder`. Raises `FileWriteError`."""
    for name in (WEIGHTS, SETTINGS):
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes((best / name).read_bytes())


def speed(courses: Sequence[TrainingHistory]) -> dict[str, float]:
    """How fast learning was, as medians over the seeds: rounds a second, updates included, and how long it took until
    the validation throughput was within 2 % of the last one.
    """
    return {
        "steps_per_second": float(np.median([course.looks[-1].steps / course.looks[-1].seconds for course in courses])),
        "steps_to_within_2_percent": float(np.median([course.near.steps for course in courses])),
        "minutes_to_within_2_percent": float(np.median([course.near.seconds for course in courses])) / 60,
    }


def write_report(
    folder: Path,
    courses: Mapping[int, TrainingHistory],
    plan: LearningPlan,
    about: Mapping[str, Any],
    started: datetime.datetime,
) -> Path:
    """Writes ``training.json`` and returns its path.

    Args:
        folder: where.
        courses: by seed.
        plan: what was learned.
        about: what it was learned from.
        started: when the command began, in UTC.

    Raises:
        FileWriteError: it could not be written.
    """
    record = {
        "schema": "specgym training 1",
        **run_facts(started, "cpu"),
        "about": dict(about),
        "plan": asdict(plan) | {"grid": plan.grid.to_dict()},
        "best_seed": best_seed(courses),
        "seeds": {str(seed): _told(course) for seed, course in courses.items()},
        "speed": speed(list(courses.values())),
        "summary": _summary(list(courses.values())),
    }
    write_text(folder / RESULTS, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return folder / RESULTS


def _told(course: TrainingHistory) -> dict[str, Any]:
    last, near = course.looks[-1], course.near
    return {
        "steps_per_second": last.steps / last.seconds,
        "steps_to_within_2_percent": near.steps,
        "seconds_to_within_2_percent": near.seconds,
        "best_score": course.best.score,
        "looks": course.record(),
    }


def _summary(courses: list[TrainingHistory]) -> dict[str, Any]:
    """Over the seeds: median and range of what the best policies score, by profile too."""
    names = courses[0].best.throughput
    scores = {"score": [course.best.score for course in courses]} | {
        name: [course.best.throughput[name] for course in courses] for name in names
    }
    return {
        name: {"median": float(np.median(found)), "least": min(found), "most": max(found)}
        for name, found in scores.items()
    }

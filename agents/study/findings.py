"""What the study found, in numbers: speed-ups, intervals over texts, and intervals over seeds.

Speed-ups are over plain decoding on the same texts. Where a line stands for several machines and temperatures it is the
geometric mean over them. Two controllers are compared text by text; learned ones by their mean time over the seeds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from specgym.agents.learning.training_history import TrainingHistory
from specgym.agents.learning.training_report import speed
from specgym.agents.study.plan import FORMS, FULL, LEARNED, StudyPlan
from specgym.agents.study.work import Judged, Taught
from specgym.controllers.evaluation.ladder.replayed import BEST_STATIC
from specgym.controllers.evaluation.live.paired_runs import BASELINE
from specgym.controllers.evaluation.results.schema import PromptRow
from specgym.env.common.arrays import FloatArray

RIVALS = ("history", BEST_STATIC, "goodput")
"""what learned policies are measured against besides plain decoding"""
_RESAMPLES = 2_000

Cell = tuple[str, float]
"""a profile and a temperature"""
Cells = dict[Cell, dict[str, list[PromptRow]]]
"""rows by controller, for each machine and temperature; learned ones are ``name#seed``"""


def findings(plan: StudyPlan, judged: Mapping[float, Judged], taught: Mapping[str, Taught]) -> dict[str, Any]:
    """All numbers of the study, as JSON can hold them."""
    cells = _cells(judged, taught)
    rules = [name for name in next(iter(cells.values())) if "#" not in name]
    chosen = max(
        (name for name in LEARNED if name in taught),
        key=lambda name: np.mean([course.best.score for course in taught[name].courses.values()]),
    )
    return {
        "chosen": chosen,
        "cells": [_cell(cell, cells, rules, taught) | {"static": judged[cell[1]].static[cell[0]]} for cell in cells],
        "overall": _told(list(cells), cells, rules, taught),
        "kinds": _kinds(cells, [*rules, *(name for name in LEARNED if name in taught)], taught),
        "forms": {name: _compared(cells, taught, name, "ppo") for name in FORMS if name in taught},
        "groups": {FULL: _compared(cells, taught, FULL, FULL)}
        | {"without_draft": _compared(cells, taught, "corrections", FULL)}
        | {f"without_{group}": _compared(cells, taught, f"without_{group}", FULL) for group in plan.groups},
        "transfer": [_transferred(cells, taught, name) for name in taught if name.startswith("never_")],
        "curves": {name: _curve(list(taught[name].courses.values())) for name in (*LEARNED, *FORMS) if name in taught},
        "training": {name: speed(list(each.courses.values())) for name, each in taught.items()},
    }


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean over the seeds with its 95 % interval by Student's t; None in place of one that one seed cannot give."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return {"mean": mean, "interval": None, "by_seed": list(values)}
    half = float(student.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
    return {"mean": mean, "interval": [mean - half, mean + half], "by_seed": list(values)}


def paired(ours: Mapping[Cell, list[PromptRow]], theirs: Mapping[Cell, list[PromptRow]]) -> dict[str, Any]:
    """Our throughput over theirs on the same texts, as the geometric mean over cells, with its 95 % interval.

    Prompts are resampled, in all cells together: what is hard in one is hard in the others.
    """
    prompts = sorted({_prompt(row) for rows in ours.values() for row in rows})
    numbers = {prompt: number for number, prompt in enumerate(prompts)}
    mine, others = (np.stack([_seconds(side[cell], numbers) for cell in ours]) for side in (ours, theirs))
    whole = np.ones((1, len(prompts)))
    ratio = float(_geometric(whole, mine, others)[0])
    if len(prompts) < 2:
        return {"ratio": ratio, "interval": None}
    drawn = np.random.default_rng(0).multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), _RESAMPLES)
    low, high = np.nanpercentile(_geometric(drawn.astype(np.float64), mine, others), [2.5, 97.5])
    return {"ratio": ratio, "interval": [float(low), float(high)]}


def seed_rows(rows: Mapping[str, list[PromptRow]], taught: Taught) -> list[PromptRow]:
    """Rows of a lesson's mean over the seeds: of every text the mean time."""
    seeds = [rows[f"{taught.lesson.name}#{seed}"] for seed in taught.courses]
    return [
        dataclasses.replace(
            each[0], controller=taught.lesson.name, seconds=float(np.mean([row.seconds for row in each]))
        )
        for each in zip(*seeds, strict=True)
    ]


def _cells(judged: Mapping[float, Judged], taught: Mapping[str, Taught]) -> Cells:
    """The rows of everything, text by text in the same order."""
    cells: Cells = {}
    for temperature, found in judged.items():
        for profile, rows in found.rows.items():
            everything = [*rows, *(row for each in taught.values() for row in each.rows[temperature][profile])]
            by_name: dict[str, list[PromptRow]] = {}
            for row in sorted(everything, key=lambda row: row.prompt_id):
                by_name.setdefault(row.controller, []).append(row)
            order = dict.fromkeys(row.controller for row in everything)
            cells[profile, temperature] = {name: by_name[name] for name in order}
    return cells


def _cell(cell: Cell, cells: Cells, rules: Sequence[str], taught: Mapping[str, Taught]) -> dict[str, Any]:
    return {"profile": cell[0], "temperature": cell[1]} | _told([cell], cells, rules, taught)


def _told(where: Sequence[Cell], cells: Cells, rules: Sequence[str], taught: Mapping[str, Taught]) -> dict[str, Any]:
    """Speed-ups of all rungs in some cells, and of the learned ones against the rivals."""
    base = {cell: cells[cell][BASELINE] for cell in where}
    rungs = {name: paired({cell: cells[cell][name] for cell in where}, base) for name in rules}
    learned = {}
    for name in LEARNED:
        if name not in taught:
            continue
        mean = {cell: seed_rows(cells[cell], taught[name]) for cell in where}
        learned[name] = over_seeds(_by_seed(where, cells, taught[name])) | {
            "best_seed": taught[name].best,
            "over_texts": paired(mean, base),
            "against": {
                rival: paired(mean, {cell: cells[cell][rival] for cell in where}) for rival in RIVALS if rival in rules
            },
        }
    return {"rungs": rungs, "learned": learned}


def _by_seed(where: Iterable[Cell], cells: Cells, taught: Taught) -> list[float]:
    """Speed-up over plain decoding of each seed."""
    where = list(where)
    speedups = []
    for seed in taught.courses:
        ratios = [
            sum(row.seconds for row in cells[cell][BASELINE])
            / sum(row.seconds for row in cells[cell][f"{taught.lesson.name}#{seed}"])
            for cell in where
        ]
        speedups.append(float(np.exp(np.mean(np.log(ratios)))))
    return speedups


def _kinds(cells: Cells, names: Sequence[str], taught: Mapping[str, Taught]) -> dict[str, Any]:
    """Speed-ups by kind of task, over all cells."""
    kinds: dict[str, Any] = {}
    for kind in sorted({row.category for rows in cells.values() for row in rows[BASELINE]}):
        where = [cell for cell in cells if any(row.category == kind for row in cells[cell][BASELINE])]

        def of(name: str, kind: str = kind, where: Sequence[Cell] = where) -> dict[Cell, list[PromptRow]]:
            rows = {
                cell: seed_rows(cells[cell], taught[name]) if name in taught else cells[cell][name] for cell in where
            }
            return {cell: [row for row in found if row.category == kind] for cell, found in rows.items()}

        base = of(BASELINE)
        kinds[kind] = {
            "prompts": len({_prompt(row) for rows in base.values() for row in rows}),
            "rungs": {name: paired(of(name), base) for name in names},
        }
    return kinds


def _compared(cells: Cells, taught: Mapping[str, Taught], name: str, base: str) -> dict[str, Any]:
    """Speed-up of a lesson over all cells by seed, and its mean time against another lesson's, text by text."""
    ours, theirs = ({cell: seed_rows(cells[cell], taught[each]) for cell in cells} for each in (name, base))
    return over_seeds(_by_seed(cells, cells, taught[name])) | {"against": {base: paired(ours, theirs)}}


def _transferred(cells: Cells, taught: Mapping[str, Taught], name: str) -> dict[str, Any]:
    """What a policy does on the machine that it never saw, against those that learned on all of them."""
    (profile,) = taught[name].lesson.held_out
    where = [cell for cell in cells if cell[0] == profile]
    ours, theirs = ({cell: seed_rows(cells[cell], taught[each]) for cell in where} for each in (name, "corrections"))
    base = {cell: cells[cell][BASELINE] for cell in where}
    found = {
        "profile": profile,
        "never_seen": over_seeds(_by_seed(where, cells, taught[name])),
        "seen": over_seeds(_by_seed(where, cells, taught["corrections"])),
        "against_seen": paired(ours, theirs),
    }
    if "goodput" in cells[where[0]]:
        rule = {cell: cells[cell]["goodput"] for cell in where}
        found |= {"goodput": paired(rule, base), "against_goodput": paired(ours, rule)}
    return found


def _curve(courses: Sequence[TrainingHistory]) -> dict[str, Any]:
    """Validation throughput look by look: mean over the seeds, least and most; steps and minutes."""
    scores = np.array([[look.score for look in course.looks] for course in courses])
    seconds = np.array([[look.seconds for look in course.looks] for course in courses])
    return {
        "steps": [look.steps for look in courses[0].looks],
        "minutes": (seconds.mean(axis=0) / 60).tolist(),
        "mean": scores.mean(axis=0).tolist(),
        "least": scores.min(axis=0).tolist(),
        "most": scores.max(axis=0).tolist(),
    }


def _prompt(row: PromptRow) -> str:
    return row.prompt_id.rpartition("#")[0] or row.prompt_id


def _seconds(rows: Sequence[PromptRow], numbers: Mapping[str, int]) -> FloatArray:
    """Time of every prompt, 0 for those that a cell does not have, `float64[prompts]` [s]."""
    seconds = np.zeros(len(numbers))
    for row in rows:
        seconds[numbers[_prompt(row)]] += row.seconds
    return seconds


def _geometric(weights: FloatArray, mine: FloatArray, others: FloatArray) -> FloatArray:
    """Geometric mean over cells of their time over mine, `float64[resamples]`; the tokens are the same."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.log((weights @ others.T) / (weights @ mine.T))
    return np.asarray(np.exp(ratios.mean(axis=1)))

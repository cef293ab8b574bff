"""The numbers of the study: speed-ups, intervals over texts, and intervals over seeds.

Speed-ups are over plain decoding on the same texts. Over several machines and temperatures they are geometric means.
Two controllers are compared text by text; learned ones by their mean time over the seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from specgym.agents.learning.training_history import TrainingHistory, best_seed, speed
from specgym.agents.study.plan import FORMS, FULL, LEARNED, StudyPlan
from specgym.agents.study.work import RuleResults, Trained
from specgym.controllers.evaluation.ladder.replayed import BEST_STATIC, ladder_names
from specgym.controllers.evaluation.results.schema import PromptRow
from specgym.controllers.evaluation.results.statistics import bootstrap_interval
from specgym.controllers.registry import BASELINE
from specgym.env.common.arrays import FloatArray

COMPARED_RULES = ("history", BEST_STATIC, "goodput")
"""the rules that learned policies are compared with, besides plain decoding"""
_RESAMPLES = 2_000

Cell = tuple[str, float]
"""a profile and a temperature"""
CellRows = Mapping[Cell, list[PromptRow]]
"""rows of a controller by cell"""
Numbers = dict[str, Any]
"""numbers as JSON can hold them"""


def findings(plan: StudyPlan, rules: Mapping[float, RuleResults], trained: Mapping[str, Trained]) -> Numbers:
    """Computes all numbers of the study."""
    study = _Study(ladder_names(list(plan.rules)), rules, trained)
    histories = {name: list(group.histories.values()) for name, group in trained.items()}
    blind = {"without_draft": "corrections"} | {f"without_{group}": f"without_{group}" for group in plan.groups}
    return {
        "chosen": max(LEARNED, key=lambda name: np.mean([history.best.score for history in histories[name]])),
        "cells": [
            {"profile": profile, "temperature": temperature}
            | study.ladder([(profile, temperature)])
            | {"static": rules[temperature].static[profile]}
            for profile, temperature in study.rows
        ],
        "overall": study.ladder(),
        "kinds": study.kinds(),
        "forms": {name: study.against(name, "ppo") for name in FORMS},
        "groups": {label: study.against(name, FULL) for label, name in ({FULL: FULL} | blind).items()},
        "transfer": [study.transfer(name) for name in trained if name.startswith("never_")],
        "curves": {name: _curve(histories[name]) for name in (*LEARNED, *FORMS)},
        "training": {name: speed(runs) for name, runs in histories.items()},
    }


def over_seeds(values: Sequence[float]) -> Numbers:
    """Returns the mean over the seeds with its 95 % interval by Student's t; None in place of one seed's interval."""
    mean, interval = float(np.mean(values)), None
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
        interval = [mean - half, mean + half]
    return {"mean": mean, "interval": interval, "by_seed": list(values)}


def paired(ours: CellRows, theirs: CellRows) -> Numbers:
    """Returns our throughput over theirs on the same texts, as the geometric mean over cells, with a 95 % interval.

    Prompts are resampled in all cells together: what is hard in one cell is hard in the others.
    """
    seconds = _seconds(ours, theirs)
    interval = bootstrap_interval(_geometric_ratio, *seconds, resamples=_RESAMPLES)
    return {"ratio": float(_geometric_ratio(*seconds)), "interval": interval and list(interval)}


class _Study:
    """All rows of the study, text by text in the same order.

    Args:
        rungs: names of controllers that are not learned.
        rules: their rows, by temperature.
        trained: learned controllers by name.

    Attributes:
        rows: by cell and controller. Of learned controllers there are ``name#seed``, and ``name`` with mean times.
    """

    def __init__(self, rungs: list[str], rules: Mapping[float, RuleResults], trained: Mapping[str, Trained]) -> None:
        self.rungs, self.trained, self.rows = rungs, trained, dict[Cell, dict[str, list[PromptRow]]]()
        for temperature, results in rules.items():
            for profile, rows in results.rows.items():
                by_name: dict[str, list[PromptRow]] = {}
                everything = [*rows, *(row for group in trained.values() for row in group.rows[temperature][profile])]
                for row in sorted(everything, key=lambda row: row.prompt_id):
                    by_name.setdefault(row.controller, []).append(row)
                for name, group in trained.items():
                    by_name[name] = _mean_rows(name, [by_name[f"{name}#{seed}"] for seed in group.histories])
                self.rows[profile, temperature] = by_name

    def ratio(self, name: str, base: str, cells: Sequence[Cell] | None = None, kind: str | None = None) -> Numbers:
        """Returns the throughput of `name` over that of `base`, in some cells, on texts of one kind of task."""
        return paired(*(self._of(side, cells, kind) for side in (name, base)))

    def by_seed(self, name: str, cells: Sequence[Cell] | None = None) -> Numbers:
        """Returns the speed-ups of a learned controller over plain decoding, as `over_seeds` does."""
        base = self._of(BASELINE, cells)
        policies = (self._of(f"{name}#{seed}", cells) for seed in self.trained[name].histories)
        return over_seeds([float(_geometric_ratio(*_seconds(policy, base))) for policy in policies])

    def ladder(self, cells: Sequence[Cell] | None = None) -> Numbers:
        """Returns speed-ups of all controllers, and of the learned ones over the rules to compare with."""
        compared = [rule for rule in COMPARED_RULES if rule in self.rungs]
        learned = {
            name: self.by_seed(name, cells)
            | {
                "best_seed": best_seed(self.trained[name].histories),
                "over_texts": self.ratio(name, BASELINE, cells),
                "against": {rule: self.ratio(name, rule, cells) for rule in compared},
            }
            for name in LEARNED
        }
        return {"rungs": {name: self.ratio(name, BASELINE, cells) for name in self.rungs}, "learned": learned}

    def kinds(self) -> Numbers:
        """Returns speed-ups by kind of task, over all cells."""
        plain = [row for rows in self.rows.values() for row in rows[BASELINE]]
        return {
            kind: {
                "prompts": len({_prompt(row) for row in plain if row.category == kind}),
                "rungs": {name: self.ratio(name, BASELINE, kind=kind) for name in [*self.rungs, *LEARNED]},
            }
            for kind in sorted({row.category for row in plain})
        }

    def against(self, name: str, base: str) -> Numbers:
        """Returns speed-ups of a learned controller by seed, and its throughput over another one's."""
        return self.by_seed(name) | {"against": {base: self.ratio(name, base)}}

    def transfer(self, name: str) -> Numbers:
        """Compares policies on a machine that they did not learn on with policies that learned on all machines."""
        (profile,) = self.trained[name].recipe.held_out
        cells = [cell for cell in self.rows if cell[0] == profile]
        numbers = {
            "profile": profile,
            "never_seen": self.by_seed(name, cells),
            "seen": self.by_seed("corrections", cells),
            "against_seen": self.ratio(name, "corrections", cells),
        }
        if "goodput" in self.rungs:
            numbers["goodput"] = self.ratio("goodput", BASELINE, cells)
            numbers["against_goodput"] = self.ratio(name, "goodput", cells)
        return numbers

    def _of(self, name: str, cells: Sequence[Cell] | None, kind: str | None = None) -> CellRows:
        parts = {cell: self.rows[cell][name] for cell in cells or self.rows}
        rows = {cell: [row for row in part if kind in (None, row.category)] for cell, part in parts.items()}
        return {cell: part for cell, part in rows.items() if part}


def _mean_rows(name: str, seeds: Sequence[Sequence[PromptRow]]) -> list[PromptRow]:
    """Rows of the mean time over the seeds, text by text."""
    return [
        dataclasses.replace(rows[0], controller=name, seconds=float(np.mean([row.seconds for row in rows])))
        for rows in zip(*seeds, strict=True)
    ]


def _curve(histories: Sequence[TrainingHistory]) -> Numbers:
    """Validation throughput after each part of the training: mean, least and most over the seeds; steps and minutes."""
    # Both arrays are [seeds, evaluations].
    scores = np.array([[evaluation.score for evaluation in history.evaluations] for history in histories])
    seconds = np.array([[evaluation.seconds for evaluation in history.evaluations] for history in histories])
    return {
        "steps": [evaluation.steps for evaluation in histories[0].evaluations],
        "minutes": (seconds.mean(axis=0) / 60).tolist(),
        "mean": scores.mean(axis=0).tolist(),
        "least": scores.min(axis=0).tolist(),
        "most": scores.max(axis=0).tolist(),
    }


def _prompt(row: PromptRow) -> str:
    """The prompt of a row; texts of several seeds share it."""
    return row.prompt_id.rsplit("#", 1)[0]


def _seconds(ours: CellRows, theirs: CellRows) -> FloatArray:
    """Times of each prompt on both sides, 0 where a cell lacks the prompt, `float64[2, cells, prompts]` [s]."""
    prompts = sorted({_prompt(row) for rows in ours.values() for row in rows})
    numbers = {prompt: number for number, prompt in enumerate(prompts)}
    seconds = np.zeros((2, len(ours), len(prompts)))
    for times, side in zip(seconds, (ours, theirs), strict=True):
        for line, cell in zip(times, ours, strict=True):
            for row in side[cell]:
                line[numbers[_prompt(row)]] += row.seconds
    return seconds


def _geometric_ratio(ours: FloatArray, theirs: FloatArray, axis: int = -1) -> FloatArray:
    """Geometric mean over cells of their time over ours; both sides decode the same tokens.

    A cell is left out where none of the resampled prompts is in it.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(theirs.sum(axis) / ours.sum(axis))  # [cells, resamples]
    return np.asarray(np.exp(np.nanmean(logs, axis=0)))

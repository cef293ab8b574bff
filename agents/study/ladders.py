"""The ladder of every machine and temperature, in the form that any evaluation is reported in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.study.plan import LEARNED
from agents.study.work import Judged, Taught
from controllers.evaluation.benchmark import BASELINE
from controllers.evaluation.replays import BEST_STATIC, BOUNDS
from controllers.evaluation.report import write_results
from controllers.evaluation.schema import Machine, Results
from controllers.evaluation.statistics import summarise

__all__ = ["write_ladders"]


def write_ladders(
    judged: Mapping[float, Judged],
    taught: Mapping[str, Taught],
    facts: Mapping[str, Any],
    settings: Mapping[str, Any],
    folder: Path,
) -> None:
    """Writes a folder for every profile and temperature; of the learned policies those that did best in validation.

    Args:
        judged: what is not learned, by temperature.
        taught: the lessons by name.
        facts: see `run_facts`.
        settings: that all share.
        folder: where.

    Raises:
        FileWriteError: a file could not be written.
    """
    for temperature, found in judged.items():
        for profile, rows in found.rows.items():
            everything = list(rows)
            for name in LEARNED:
                chosen = f"{name}#{taught[name].best}"
                everything += [
                    dataclasses.replace(row, controller=name)
                    for row in taught[name].rows[temperature][profile]
                    if row.controller == chosen
                ]
            names = list(dict.fromkeys(row.controller for row in everything if row.controller not in BOUNDS))
            results = Results(
                kind="evaluation",
                complete=True,
                suite=profile,
                started_at=facts["started_at"],
                command=facts["command"],
                git_revision=facts["git_revision"],
                versions=facts["versions"],
                machine=Machine(**facts["machine"]),
                settings=dict(settings)
                | {"temperature": temperature, "profile": profile, BEST_STATIC: found.static[profile]},
                baseline=BASELINE,
                controllers=summarise(everything, [], BASELINE, [*names, *BOUNDS]),
                rows=everything,
                failures=[],
            )
            write_results(results, folder / f"{profile}-t{temperature:g}")

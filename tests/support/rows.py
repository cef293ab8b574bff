"""Rows and results that are small enough to check by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specgym.controllers.evaluation.results.schema import Failure, Machine, PromptRow, Results
from specgym.controllers.evaluation.results.statistics import summarise


def make_row(controller: str, prompt_id: str, seconds: float, **changes: Any) -> PromptRow:
    """A plain row of ten tokens, with `changes`."""
    values: dict[str, Any] = {
        "category": "code",
        "repeat": 0,
        "prompt_tokens": 5,
        "tokens": 10,
        "rounds": 10,
        "drafted": 0,
        "accepted": 0,
    }
    return PromptRow(controller=controller, prompt_id=prompt_id, seconds=seconds, **(values | changes))


def small_rows() -> list[PromptRow]:
    """Plain decoding and a tree on two prompts; every summary of them is easy to work out by hand."""
    parts = {
        "draft": 1.0,
        "draft_forward": 0.5,
        "verify": 2.0,
        "verify_forward": 1.5,
        "commit": 0.25,
        "controller": 0.25,
    }
    tree = {"rounds": 4, "drafted": 20, "accepted": 6, "seconds_by_part": parts}
    return [
        make_row("plain", "a", 6.0, seconds_by_part={"verify": 3.0, "verify_forward": 3.0}),
        make_row("plain", "b", 9.0, tokens=30, rounds=30, category="chat"),
        make_row("tree", "a", 4.0, identical=True, **tree),
        make_row(
            "tree", "b", 6.0, tokens=30, category="chat", identical=False, first_difference=7, top2_gap=0.0625, **tree
        ),
    ]


def make_results(
    rows: Sequence[PromptRow] | None = None, failures: Sequence[Failure] = (), complete: bool = True
) -> Results:
    """Results of `rows` (by default the small ones) under the baseline `plain`."""
    rows = small_rows() if rows is None else list(rows)
    return Results(
        kind="benchmark",
        complete=complete,
        suite="tiny",
        started_at="2025-01-02T03:04:05+00:00",
        command="python -m scripts.benchmark --suite tiny",
        git_revision="0123456789abcdef-dirty",
        versions={"python": "3.11.0"},
        machine=Machine("A CPU", 2, 2, 8.0, "cpu", "Linux x86_64"),
        settings={"target": "someone/small-model", "temperature": 0.0, "dtype": "float32", "draft": None},
        baseline="plain",
        controllers=summarise(rows, failures, "plain", ["plain", "tree"]),
        rows=rows,
        failures=list(failures),
    )

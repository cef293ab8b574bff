"""The record of a breakdown survives its file, and every other file is made from it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from specgym.controllers.evaluation.profiling.breakdown import TimeBreakdown
from specgym.controllers.evaluation.profiling.breakdown_report import (
    breakdown_notes,
    breakdown_tables,
    write_breakdown,
)
from specgym.controllers.evaluation.results.schema import read_record

COMMITTED = Path(__file__).parents[4] / "results" / "profile" / "results.json"


@pytest.fixture(scope="module")
def breakdown() -> TimeBreakdown:
    return read_record(TimeBreakdown, COMMITTED)


def test_an_earlier_record_is_read_and_written_without_a_change(breakdown: TimeBreakdown, tmp_path: Path) -> None:
    write_breakdown(breakdown, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "results.md", "breakdown.png"}
    for name in ("results.json", "results.md"):
        assert (tmp_path / name).read_text(encoding="utf-8") == COMMITTED.with_name(name).read_text(encoding="utf-8")


def test_groups_of_operators_add_up_to_a_round(breakdown: TimeBreakdown) -> None:
    for cell in breakdown.cells:
        assert cell.profiled
        assert sum(cell.seconds_by_group.values()) == pytest.approx(cell.seconds)


def test_operators_of_no_group_are_named_by_their_greatest_share(breakdown: TimeBreakdown) -> None:
    shares: list[dict[str, float]] = [{"x::a": 0.1, "x::b": 0.2}, {"x::a": 0.3}]
    cells = [dataclasses.replace(cell, unknown=names) for cell, names in zip(breakdown.cells, shares, strict=False)]
    changed = dataclasses.replace(breakdown, cells=cells)
    assert changed.unknown_operators == ["x::a", "x::b"]
    assert any(note.endswith("of the time: x::a, x::b.") for note in breakdown_notes(changed))


def test_a_stopped_run_says_so_and_leaves_no_figure_of_an_earlier_one(breakdown: TimeBreakdown, tmp_path: Path) -> None:
    write_breakdown(breakdown, tmp_path)
    stopped = dataclasses.replace(breakdown, complete=False, cells=[], ratios=[], growth=None)
    write_breakdown(stopped, tmp_path)
    assert breakdown_tables(stopped) == []
    assert breakdown_notes(stopped)[0].startswith("INCOMPLETE")
    assert not (tmp_path / "breakdown.png").exists()
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["complete"] is False

"""One table in three forms, and figures of one style."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from specgym.controllers.evaluation.results.figures import draw_interval, name_rows, new_figure, save_figure
from specgym.controllers.evaluation.results.tables import Table, markdown_page, with_interval

TABLE = Table(("name", "mean"), [("a|b [red]", 1.25), ("c\nd", None)], "Title", "Caption")
FACTS = {"started_at": "2025-01-02", "git_revision": None, "command": "python -m x", "versions": {"numpy": "2"}}


def printed(table: Table, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text()


def test_markdown_escapes_cells_and_aligns_numbers_to_the_right() -> None:
    assert TABLE.markdown() == "| name | mean |\n| :-- | --: |\n| a\\|b [red] | 1.25 |\n| c d | - |"
    assert "| :-- | :-- |" in Table(("a", "b"), [], numbers=False).markdown()


def test_csv_keeps_values_and_leaves_unknown_ones_empty() -> None:
    assert list(csv.reader(io.StringIO(TABLE.csv()))) == [["name", "mean"], ["a|b [red]", "1.25"], ["c\nd", ""]]


def test_a_terminal_shows_title_caption_and_cells_as_they_are() -> None:
    text = printed(TABLE)
    for part in ("Title", "Caption", "a|b [red]", "1.25", "-"):
        assert part in text


def test_a_narrow_terminal_breaks_long_names_and_no_number() -> None:
    text = printed(Table(("name", "x", "y"), [("a-very-long-name-indeed", "1.50 [1.25, 1.75]", "20.5")]), 34)
    for part in ("a-very-long-na", "1.50", "[1.25,", "1.75]", "20.5"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 34


def test_an_interval_is_cut_off_and_may_be_missing() -> None:
    assert with_interval(1.239, (1.0, 1.999)) == "1.23 [1.00, 1.99]"
    assert with_interval(1.239, (1.0, 1.999), 1, "()") == "1.2 (1.0, 1.9)"
    assert with_interval(1.239, None) == "1.23"
    assert with_interval(None, None) == "-"


def test_a_page_has_its_origin_its_blocks_and_its_versions() -> None:
    page = markdown_page("Heading", FACTS, ["text", "", TABLE, Table(("a",), [], "Empty")], "Careful")
    heads = ["# Heading", "**Careful**", "Started 2025-01-02, revision not a git checkout.", "```\npython -m x\n```"]
    blocks = ["text", f"## Title\n\n{TABLE.markdown()}"]
    versions = "## Versions\n\n| library | version |\n| :-- | :-- |\n| numpy | 2 |"
    assert page == "\n\n".join([*heads, *blocks, versions]) + "\n"


@pytest.mark.parametrize("interval", [None, (0.5, 2.0)])
def test_a_figure_is_saved_whole(tmp_path: Path, interval: tuple[float, float] | None) -> None:
    figure, axes = new_figure("Title", (4, 3), (1, 2), subtitle="sub", footer="foot", warning="INCOMPLETE", sharey=True)
    assert axes.shape == (1, 2)
    draw_interval(axes[0, 0], 0, 1.239, interval, "black")
    assert [text.get_text() for text in axes[0, 0].texts] == ["1.23"]
    name_rows(axes[0, 0], ["only"])
    assert [label.get_text() for label in axes[0, 0].get_yticklabels()] == ["only"]
    save_figure(figure, tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "new").iterdir())) == 1

"""Pages show the numbers of their results files, and the committed pages are up to date."""

from __future__ import annotations

import dataclasses
import re
from itertools import groupby
from pathlib import Path

import pytest

from specgym.controllers.evaluation.results.pages import render, update
from specgym.controllers.evaluation.results.report import table, write_results
from specgym.controllers.evaluation.results.schema import Results
from specgym.env.common.errors import ParameterError, UnknownNameError
from specgym.scripts.update_pages import UpdatePagesOptions
from tests.support.rows import make_results

ROOT = Path(__file__).parents[4]
PAGES = [ROOT / page for page in UpdatePagesOptions().pages]
BLOCK = "<!-- results: {path} -->\n{text}<!-- end of results -->\n"


def full_results(prompts: int = 2) -> Results:
    """Results with the settings that a page names."""
    results = make_results()
    settings = {"prompts": "builtin", "prompt_count": prompts, "max_new_tokens": 64, "draft_kind": "feature"}
    return dataclasses.replace(results, settings=results.settings | settings)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page with a block of results."""
    write_results(full_results(), tmp_path / "runs" / "a", plots=False)
    path = tmp_path / "page.md"
    path.write_text("Before\n\n" + BLOCK.format(path="runs/a/results.json", text="") + "\nAfter\n", encoding="utf-8")
    return path


def test_a_block_shows_the_table_and_what_was_measured(page: Path) -> None:
    text = render(page)
    assert table(full_results()).markdown() in text
    for fact in ("2 builtin prompts", "at most 64 tokens", "temperature 0", "float32", "draft feature", "A CPU"):
        assert fact in text
    assert "2025-01-02" in text
    assert "INCOMPLETE" not in text


def test_only_the_block_changes_and_only_once(page: Path) -> None:
    before = page.read_text(encoding="utf-8")
    assert render(page) != before, "the test would be vacuous"
    assert page.read_text(encoding="utf-8") == before, "rendering writes nothing"
    update(page)
    after = page.read_text(encoding="utf-8")
    assert after.startswith("Before\n\n<!-- results: runs/a/results.json -->\n")
    assert after.endswith("<!-- end of results -->\n\nAfter\n")
    update(page)
    assert page.read_text(encoding="utf-8") == after


def test_new_results_replace_old_ones(page: Path) -> None:
    update(page)
    write_results(full_results(prompts=3), page.parent / "runs" / "a", plots=False)
    update(page)
    text = page.read_text(encoding="utf-8")
    assert "3 builtin prompts" in text
    assert "2 builtin prompts" not in text


def test_every_block_shows_its_own_file(page: Path) -> None:
    write_results(full_results(prompts=7), page.parent / "runs" / "b", plots=False)
    with page.open("a", encoding="utf-8") as file:
        file.write(BLOCK.format(path="runs/b/results.json", text="stale\n"))
    first, second = re.findall(r"(\d) builtin prompts", render(page))
    assert (first, second) == ("2", "7")
    assert "stale" not in render(page)


def test_a_block_may_show_a_section_of_a_page_of_results(page: Path) -> None:
    written = (
        "# Of all\n\nfirst\n\n## By machine\n\n| a |\n| :-- |\n| 1 |\n\n![By kind](kinds.png)\n\n## Settings\n\nlast\n"
    )
    (page.parent / "study.md").write_text(written, encoding="utf-8")
    page.write_text(BLOCK.format(path="study.md#By machine", text="stale\n"), encoding="utf-8")
    assert render(page) == BLOCK.format(path="study.md#By machine", text="\n| a |\n| :-- |\n| 1 |\n\n")
    page.write_text(BLOCK.format(path="study.md#By kind", text=""), encoding="utf-8")
    with pytest.raises(ParameterError, match="no section 'By kind'; it has Of all, By machine, Settings"):
        render(page)


def test_a_block_may_show_some_columns_of_the_table(page: Path) -> None:
    page.write_text(BLOCK.format(path="runs/a/results.json | controller, τ", text="stale\n"), encoding="utf-8")
    lines = [line for line in render(page).splitlines() if line.startswith("|")]
    assert lines[0] == "| controller | τ |"
    assert len(lines) == 2 + len(table(full_results()).rows)
    page.write_text(BLOCK.format(path="runs/a/results.json | controller, tau", text=""), encoding="utf-8")
    with pytest.raises(UnknownNameError, match="column 'tau'"):
        render(page)


def test_results_of_a_stopped_run_say_so(page: Path) -> None:
    write_results(dataclasses.replace(full_results(), complete=False), page.parent / "runs" / "a", plots=False)
    assert re.search("incomplete|stopped", render(page), re.IGNORECASE)


@pytest.mark.parametrize("text", ["", "no block", "<!-- results: a.json -->\nnever ended\n"])
def test_a_page_without_a_block_is_refused_by_name(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(ParameterError, match=f"{page} has no block <!-- results: PATH -->"):
        update(page)
    assert page.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_results_file_that_cannot_be_read_is_named_and_the_page_kept(page: Path, content: str | None) -> None:
    results = page.parent / "runs" / "a" / "results.json"
    before = page.read_text(encoding="utf-8")
    if content is None:
        results.unlink()
    else:
        results.write_text(content, encoding="utf-8")
    with pytest.raises(ParameterError, match=re.escape(str(results))):
        update(page)
    assert page.read_text(encoding="utf-8") == before


def test_results_without_a_setting_that_the_page_names_are_refused(page: Path) -> None:
    write_results(make_results(), page.parent / "runs" / "a", plots=False)
    with pytest.raises(ParameterError, match="prompt_count"):
        render(page)


@pytest.mark.parametrize("content", [None, b"\xff"], ids=["missing", "not UTF-8"])
def test_a_page_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    page = tmp_path / "page.md"
    if content is not None:
        page.write_bytes(content)
    with pytest.raises(ParameterError, match=str(page)):
        update(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_show_the_committed_results(page: Path) -> None:
    named = re.findall(r"<!-- results: ([^\s#]+)", page.read_text(encoding="utf-8"))
    assert named
    assert all((page.parent / path).is_file() for path in named)
    assert render(page) == page.read_text(encoding="utf-8"), "run python -m scripts.update_pages"


def test_every_page_with_results_is_brought_up_to_date_by_default() -> None:
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    assert {page for page in pages if "<!-- results: " in page.read_text(encoding="utf-8")} == set(PAGES)


def test_the_readme_is_short_and_its_tables_are_small() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    tables = [list(table) for is_row, table in groupby(lines, key=lambda line: line.startswith("|")) if is_row]
    assert tables, "the test would be vacuous"
    assert max(len(table) - 2 for table in tables) <= 7, "rows below the header"
    assert max(line.count("|") - 1 for table in tables for line in table) <= 5, "columns"

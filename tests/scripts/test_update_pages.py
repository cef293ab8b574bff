"""`update-pages` fills the blocks of a page from the results that it names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from specgym.controllers.evaluation.results.report import write_results
from tests.support.commands import Caller, assert_refused
from tests.support.rows import make_results


class TestUpdatePages:
    def test_pages_are_brought_up_to_date(self, call: Caller, tmp_path: Path) -> None:
        results = make_results()
        settings = {"prompts": "builtin", "prompt_count": 2, "max_new_tokens": 64, "draft_kind": "feature"}
        results = dataclasses.replace(results, settings=results.settings | settings)
        write_results(results, tmp_path, plots=False)
        page = tmp_path / "page.md"
        page.write_text("<!-- results: results.json -->\n<!-- end of results -->\n", encoding="utf-8")
        ended = call("update-pages", "--pages", page)
        assert (ended.status, ended.out) == (0, "")
        assert "up to date" in ended.err
        assert "| tree |" in page.read_text(encoding="utf-8")

    def test_a_page_without_a_block_is_refused(self, call: Caller, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text("nothing", encoding="utf-8")
        assert_refused(call("update-pages", "--pages", page), f"{page} has no block")

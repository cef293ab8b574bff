"""A benchmark that was stopped continues: it measures what is missing, and nothing that was measured is lost."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from specgym.controllers.evaluation.results.report import load_results
from tests.support.commands import Caller, assert_refused, largest_file, write_prompts
from tests.support.tiny_pair import TinyFolders

TEXTS = [f"hello {number}" for number in range(4)]
NAMES = ("autoregressive", "fixed_tree", "history")
RUNS = len(NAMES) * len(TEXTS) * 2
FILES = {"results.json", "results.csv", "results.md", "speedup.png", "time_shares.png"}


@pytest.fixture(scope="module")
def line(folders: TinyFolders, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The benchmark without its folder."""
    prompts = write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", TEXTS)
    pair = ["--target", folders.target, "--draft", folders.draft, "--dtype", "float32"]
    names = ["--controllers", "fixed_tree,history", "--repeats", 2, "--max-new-tokens", 6]
    return ["benchmark", *pair, "--prompts", prompts, *names]


def facts_of(folder: Path) -> dict[str, Any]:
    """Everything in the results that no clock decides."""
    record = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    rows = [{name: value for name, value in row.items() if "seconds" not in name} for row in record["rows"]]
    kept = ("complete", "failures", "settings", "baseline", "suite", "versions", "machine", "git_revision")
    return {name: record[name] for name in kept} | {"rows": rows, "controllers": list(record["controllers"])}


class TestStopped:
    @pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_it_keeps_what_it_measured_and_continues_to_the_same_end(
        self, call: Caller, line: list[object], tmp_path: Path, stop: signal.Signals
    ) -> None:
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        assert call(*line, "--output", whole).status == 0
        line = [*line, "--output", parts]
        ended = call.interrupted("measuring", *line, after=2 + len(NAMES) + 1, stop=stop)
        assert ended.status == 128 + stop
        assert "Interrupted: what was measured so far is kept" in ended.err
        assert "Traceback" not in ended.err
        results = load_results(parts / "results.json")
        assert (results.complete, len(results.rows), results.failures) == (False, len(NAMES), [])
        assert {path.name for path in parts.iterdir()} == FILES | {"rows.jsonl"}
        assert "INCOMPLETE" in (parts / "results.md").read_text(encoding="utf-8")
        first = [asdict(row) for row in results.rows]

        ended = call(*line)
        assert ended.status == 0, ended.err
        assert "Continuing with the 1 prompts of 8 measured before." in ended.err
        assert facts_of(parts) == facts_of(whole)
        assert [asdict(row) for row in load_results(parts / "results.json").rows[: len(first)]] == first
        assert {path.name for path in parts.iterdir()} == FILES, "the next run begins anew"

    def test_another_run_is_refused_by_name_until_the_file_is_gone(
        self, call: Caller, line: list[object], tmp_path: Path
    ) -> None:
        line = [*line, "--output", tmp_path]
        assert call.interrupted("measuring", *line, after=5).status == 130
        before = (tmp_path / "rows.jsonl").read_bytes()
        for more, name in (
            (["--max-new-tokens", 7], "max_new_tokens was 6, now 7"),
            (["--controllers", "history"], "controllers was"),
            (["--seed", 5], "seed was 0, now 5"),
            (["--limit", 2], "prompt_count was 4, now 2"),
        ):
            ended = call(*line, *more)
            assert_refused(ended, f"{tmp_path / 'rows.jsonl'} holds an unfinished run of something else: ")
            assert name in ended.err
        assert (tmp_path / "rows.jsonl").read_bytes() == before
        (tmp_path / "rows.jsonl").unlink()
        assert call(*line, "--limit", 2).status == 0

    def test_a_line_that_a_killed_process_left_is_dropped_and_a_damaged_one_refused(
        self, call: Caller, line: list[object], tmp_path: Path
    ) -> None:
        line, path = [*line, "--output", tmp_path], tmp_path / "rows.jsonl"
        assert call.interrupted("measuring", *line, after=1 + 2 * len(NAMES)).status == 130
        head, first, *_ = path.read_bytes().splitlines(keepends=True)
        for damaged in (first.replace(b"1", b"2"), b"oops\n", first[:8] + b"\n", b"[" * 100_000 + b"\n"):
            path.write_bytes(head + damaged + first)
            assert_refused(call(*line), f"{path} cannot be continued: ")
        path.write_bytes(head + first + first[: len(first) // 2])
        ended = call(*line)
        assert ended.status == 0, ended.err
        assert "Continuing with the 1 prompts" in ended.err
        assert len(load_results(tmp_path / "results.json").rows) == RUNS


def test_a_disk_that_fills_up_costs_one_prompt_at_most(call: Caller, line: list[object], tmp_path: Path) -> None:
    line, path = [*line, "--output", tmp_path], tmp_path / "rows.jsonl"
    assert call.interrupted("measuring", *line, after=2 + len(NAMES)).status == 130
    room = path.stat().st_size + 100
    with largest_file(room):
        ended = call(*line)
    assert ended.status == 2
    assert f"error: Could not write {path}: File too large. It keeps the 1 prompts measured before." in ended.err
    assert call(*line).status == 0
    assert len(load_results(tmp_path / "results.json").rows) == RUNS

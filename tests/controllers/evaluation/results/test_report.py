"""Reports agree with the rows, never flatter, and are never half written."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from specgym.controllers.evaluation.results.report import (
    csv_text,
    load_results,
    markdown,
    planning,
    table,
    write_results,
)
from specgym.controllers.evaluation.results.schema import STAGE_KEYS, Failure, Results, to_json
from specgym.controllers.evaluation.results.tables import cut
from specgym.env.common.errors import ParameterError
from tests.support.rows import make_results, make_row

LADDER = {"plain": 10.0, "tree": 10 / 1.5, "clairvoyant": 10 / 2, "slow": 1e9}
FILES = {"results.json", "results.csv", "results.md", "speedup.png", "time_shares.png"}


def _shown(results: Results, width: int = 160) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table(results))
    return console.export_text()


def test_a_stopped_run_is_marked_in_the_table_and_in_markdown() -> None:
    assert "INCOMPLETE" not in _shown(make_results()) + markdown(make_results())
    stopped = make_results(complete=False)
    assert "INCOMPLETE" in _shown(stopped)
    assert "**INCOMPLETE" in markdown(stopped)


def test_table_and_markdown_have_the_same_numbers() -> None:
    results = make_results()
    shown, written = _shown(results), markdown(results)
    for cell in ("4.0", "1.50 [1.50, 1.50]", "5.00", "0.300", "20/40/5/5.0", "1/2"):
        assert cell in shown
        assert f"| {cell} |" in written


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_terminal_loses_no_number(width: int) -> None:
    shown = _shown(make_results(failures=[Failure("tree", "c", 0, "boom")]), width)
    for cell in ("tree", "2.6", "4.0", "1.50", "[1.50,", "5.00", "0.300", "20/40/5/5.0", "1/2", "failed"):
        assert cell in shown
    assert max(len(line) for line in shown.splitlines()) <= width


def test_markdown_cuts_numbers_off_and_never_rounds_them_up() -> None:
    rows = [make_row("plain", "a", 10.0, tokens=100), make_row("tree", "a", 10 / 1.999, tokens=100, rounds=51)]
    written = markdown(make_results(rows))
    assert "| tree | 19.9 | 1.99 | 1.96 |" in written
    assert "2.00" not in written


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(1.15, 2, "1.15"), (1.1499, 2, "1.14"), (0.999999, 2, "0.99"), (24.99, 1, "24.9"), (3, 1, "3.0"), (None, 2, "-")],
)
def test_cut_keeps_the_first_digits_and_drops_the_rest(value: float | None, digits: int, text: str) -> None:
    assert cut(value, digits) == text


def test_markdown_lists_settings_machine_versions_categories_and_differences() -> None:
    written = markdown(make_results())
    assert "| target | someone/small-model |" in written
    assert "| cpu | A CPU |" in written
    assert "| python | 3.11.0 |" in written
    assert "| chat | 1 | 1.00 | 1.50 |" in written
    assert "| tree | b | 7 | 0.0625 |" in written
    assert "python -m scripts.benchmark --suite tiny" in written


def test_failures_are_printed_in_full_and_cannot_break_the_table() -> None:
    failures = [Failure("tree", "c", 0, "NumericalError: a | b\nsecond [red]line[/red]")]
    results = make_results(failures=failures)
    assert "failed" in _shown(results)
    assert "failed" not in _shown(make_results())
    assert r"| tree | c | 0 | NumericalError: a \| b second [red]line[/red] |" in markdown(results)


def test_every_markdown_table_has_as_many_cells_as_headers() -> None:
    written = markdown(make_results(failures=[Failure("tree", "c", 0, "x | y")]))
    tables = [block for block in written.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 6
    for block in tables:
        widths = {line.replace(r"\|", "").count("|") for line in block.splitlines()}
        assert len(widths) == 1, block


def test_many_differing_outputs_are_summed_up_and_repeats_are_one_line() -> None:
    rows = [
        make_row("tree", f"p{i}", 1.0, repeat=repeat, identical=False, first_difference=3)
        for i in range(30)
        for repeat in range(2)
    ]
    written = markdown(make_results(rows))
    assert written.count("| 3 | - |") == 20
    assert "and 10 more in results.csv" in written


def test_csv_has_a_line_for_every_row_and_parses_back() -> None:
    results = make_results()
    lines = list(csv.DictReader(io.StringIO(csv_text(results))))
    assert len(lines) == len(results.rows) > 0
    for line, row in zip(lines, results.rows, strict=True):
        assert line["controller"] == row.controller
        assert int(line["tokens"]) == row.tokens
        assert float(line["seconds"]) == row.seconds
        assert line["identical"] == ("" if row.identical is None else str(row.identical))
        parts = {key: line[f"seconds_{key}"] for key in STAGE_KEYS}
        assert parts == {key: str(row.seconds_by_part.get(key, "")) for key in parts}


def test_all_files_are_written_and_the_json_loads_equal(tmp_path: Path) -> None:
    results = make_results()
    write_results(results, tmp_path / "new" / "run")
    folder = tmp_path / "new" / "run"
    assert {path.name for path in folder.iterdir()} == FILES
    assert load_results(folder / "results.json") == results
    for name in ("speedup.png", "time_shares.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_figures_of_an_earlier_run_do_not_stay_beside_new_numbers(tmp_path: Path) -> None:
    write_results(make_results(), tmp_path)
    write_results(make_results(complete=False), tmp_path, plots=False)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "results.csv", "results.md"}


def test_a_ladder_prints_each_rungs_share_of_the_clairvoyants_gain(tmp_path: Path) -> None:
    rows = [make_row(name, "a", seconds, tokens=10) for name, seconds in LADDER.items()]
    results = replace(make_results(rows), kind="evaluation")
    shown, written = _shown(results), markdown(results)
    for name, gain in {"plain": "0.00", "tree": "0.50", "clairvoyant": "1.00", "slow": "-1.00"}.items():
        assert re.search(rf"{name} .* {re.escape(gain)} *$", shown, re.MULTILINE)
        assert re.search(rf"^\| {name} \|.*\| {re.escape(gain)} \|$", written, re.MULTILINE)
    assert "evaluation · tiny · temperature 0" in shown
    write_results(results, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"time_shares.png"}


@pytest.mark.parametrize(
    ("myopic", "sentence"),
    [(5.123, "are 2.5 % faster than .* here round by round"), (6.017, "are 20.4 % faster .* a sequential problem")],
)
def test_a_ladder_prints_what_looking_ahead_is_worth(myopic: float, sentence: str) -> None:
    rows = [make_row(name, "a", seconds, tokens=10) for name, seconds in (LADDER | {"myopic": myopic}).items()]
    assert re.search(sentence, markdown(replace(make_results(rows), kind="evaluation")))


def test_without_both_bounds_nothing_is_said_of_looking_ahead() -> None:
    rows = [make_row(name, "a", seconds, tokens=10) for name, seconds in LADDER.items()]
    assert planning(replace(make_results(rows), kind="evaluation")) == ""


def test_a_clairvoyant_that_gains_nothing_leaves_nothing_to_share() -> None:
    rows = [make_row(name, "a", 10.0, tokens=10) for name in LADDER]
    shown = _shown(replace(make_results(rows), kind="evaluation"))
    assert re.search(r"^ *tree .* - *$", shown, re.MULTILINE)


def test_results_with_nothing_to_compare_can_still_be_written(tmp_path: Path) -> None:
    write_results(make_results(rows=[], complete=False), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert load_results(tmp_path / "results.json").rows == []


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"Could not read .*absent\.json: No such file"):
        load_results(tmp_path / "absent.json")
    text = to_json(make_results())
    (tmp_path / "cut.json").write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(ParameterError, match=r"cut\.json: Expected JSON, came text that breaks off .*line \d+"):
        load_results(tmp_path / "cut.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ParameterError, match=r"bytes\.json: expected UTF-8"):
        load_results(tmp_path / "bytes.json")


FAILING_WRITE = """
import resource, signal, sys
from pathlib import Path
from specgym.controllers.evaluation.results.report import load_results, write_results
from dataclasses import replace
from specgym.env.common.files import FileWriteError

folder, limit = Path(sys.argv[1]), int(sys.argv[2])
results = replace(load_results(folder / "results.json"), suite="another")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    write_results(results, folder)
except FileWriteError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as only Unix can")
@pytest.mark.parametrize(("name", "limit"), [("results.json", 1_000), ("speedup.png", 12_000)])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, name: str, limit: int) -> None:
    write_results(make_results(), tmp_path)
    before = (tmp_path / name).read_bytes()
    assert len(before) > limit, "the test would be vacuous"
    done = subprocess.run(
        [sys.executable, "-c", FAILING_WRITE, str(tmp_path), str(limit)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[4],
    )
    assert f"Could not write {tmp_path / name}: File too large." in done.stdout
    assert "Free some space" in done.stdout
    assert (tmp_path / name).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_drawing_leaves_the_users_matplotlib_backend_alone(tmp_path: Path) -> None:
    write_results(make_results(), tmp_path, plots=False)
    code = (
        "import sys; from pathlib import Path; from specgym.controllers.evaluation.results.report import *\n"
        "folder = Path(sys.argv[1]); write_results(load_results(folder / 'results.json'), folder)\n"
        "assert (folder / 'speedup.png').exists() and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=Path(__file__).parents[4])


def test_a_page_says_that_its_revision_is_unknown() -> None:
    assert "not a git checkout" in markdown(replace(make_results(), git_revision=None))

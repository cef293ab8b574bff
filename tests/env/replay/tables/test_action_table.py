"""Tables of outcomes are the same however they are made: one by one, on several cores, or from the cache."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from specgym.env.common.errors import UnrecordedError
from specgym.env.gym.grid import ParameterGrid
from specgym.env.replay.tables import action_table, table_cache
from specgym.env.replay.tables.action_table import OutcomeTable
from specgym.env.replay.tables.table_cache import load_arrays, save_arrays
from specgym.env.replay.tables.tabulation import tabulate
from specgym.env.replay.tables.trace_table import TraceTable
from specgym.env.replay.traces.file import read_trace
from specgym.env.tree.parameters import TreeParameters
from tests.support.tiny_trace import save_tiny_trace


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[TraceTable]:
    trace = read_trace(save_tiny_trace(tmp_path_factory.mktemp("trace") / "tiny.sgt"))
    playable = [text for text in trace.texts if len(text.tokens) > text.prompt + 1]
    modes = [[text for text in playable if text.settings.greedy == greedy] for greedy in (True, False)]
    return [TraceTable(texts, trace.header) for texts in modes]


@pytest.fixture(scope="module")
def choices(tables: list[TraceTable]) -> list[TreeParameters]:
    return list(ParameterGrid().covered(tables[0].header.rule))[::37]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECGYM_HOME", str(tmp_path))
    return tmp_path / "tables"


def filled(tables: list[TraceTable], choices: list[TreeParameters], workers: int | None = None) -> OutcomeTable:
    table = OutcomeTable(tables, choices)
    table.tabulate_all(workers=workers)
    return table


def contents(table: OutcomeTable) -> list[list[list[int]]]:
    parts = [table.outcomes(choice, part) for choice in range(len(table.choices)) for part in range(len(table.tables))]
    return [part.rows(table.index.levels).tolist() for part in parts]


def test_a_family_that_grows_together_has_the_outcomes_of_each_choice_alone(
    tables: list[TraceTable], choices: list[TreeParameters]
) -> None:
    table = filled(tables, choices)
    for number, parameters in enumerate(choices):
        for part, texts in enumerate(tables):
            alone = tabulate(texts, parameters).rows(table.index.levels)
            assert np.array_equal(table.outcomes(number, part).rows(table.index.levels), alone), parameters


def test_several_cores_and_the_cache_change_nothing(
    tables: list[TraceTable], choices: list[TreeParameters], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(filled(tables, choices))
    assert not home.exists(), "so small a table is not worth a file"
    assert contents(filled(tables, choices, workers=3)) == expected
    files = list(home.glob("*.tables"))
    assert len(files) > 2, "the test would be vacuous"
    monkeypatch.setattr(action_table, "tabulate_family", None)  # a call fails now
    assert contents(filled(tables, choices, workers=3)) == expected


def test_a_damaged_file_is_computed_again(tables: list[TraceTable], choices: list[TreeParameters], home: Path) -> None:
    expected = contents(filled(tables, choices, workers=2))
    for number, path in enumerate(sorted(home.glob("*.tables"))):
        content = bytearray(path.read_bytes())
        if number % 3 == 0:
            content[-(number % 7) - 1] ^= 1
        path.write_bytes(content if number % 3 == 0 else content[: number % 3 * 20])
    assert contents(filled(tables, choices, workers=2)) == expected


def test_other_texts_and_other_code_have_other_files(
    tables: list[TraceTable], choices: list[TreeParameters], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for texts in (tables[:1], tables[1:]):
        filled(texts, choices, workers=2)
        counts.append(len(list(home.iterdir())))
    monkeypatch.setattr(table_cache, "_code_version", lambda: "another")
    filled(tables[:1], choices, workers=2)
    counts.append(len(list(home.iterdir())))
    assert counts == [counts[0], 2 * counts[0], 3 * counts[0]]


def test_the_least_recently_used_files_are_removed_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {"numbers": np.random.default_rng(0).integers(2**31, size=500)}
    for age, key in enumerate(("new", "used", "old")):
        save_arrays(key, arrays)
        os.utime(home / f"{key}.tables", (0, -age))
    size = (home / "old.tables").stat().st_size
    loaded = load_arrays("used")
    assert loaded is not None
    assert np.array_equal(loaded["numbers"], arrays["numbers"])
    monkeypatch.setattr(table_cache, "CACHE_BYTES", 2 * size)
    save_arrays("newest", arrays)
    assert sorted(path.stem for path in home.iterdir()) == ["newest", "used"]
    assert load_arrays("old") is None


def test_a_cache_that_cannot_be_written_is_done_without(
    tables: list[TraceTable], choices: list[TreeParameters], home: Path
) -> None:
    home.write_text("no folder", encoding="utf-8")
    assert contents(filled(tables, choices, workers=2)) == contents(filled(tables, choices))


def test_a_tree_that_was_not_recorded_is_an_error_on_several_cores_too(
    tables: list[TraceTable], choices: list[TreeParameters]
) -> None:
    wide = TreeParameters(8, 8, frontier_width=60)
    with pytest.raises(UnrecordedError, match="Ask for a tree within the recorded ones"):
        filled(tables, [*choices, wide], workers=2)

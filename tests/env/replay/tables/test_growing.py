"""Compiled code grows the trees that NumPy grows, and leaves to NumPy what it cannot know."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from specgym.env.common.errors import UnrecordedError
from specgym.env.gym.grid import ParameterGrid
from specgym.env.replay.decoder import TextReplay
from specgym.env.replay.tables.action_table import OutcomeTable
from specgym.env.replay.tables.growing import TreeGrower, _least_log
from specgym.env.replay.tables.tabulation import tabulate
from specgym.env.replay.tables.trace_table import TraceTable
from specgym.env.replay.traces.file import read_trace
from specgym.env.tree.parameters import PLAIN, SOURCES, TreeParameters
from tests.support.tiny_trace import save_tiny_trace

OTHER = [
    TreeParameters(2, 6, early_stop=0.05, deep_expand=0.3, source=source, calibrated=calibrated, **stops)
    for source in SOURCES
    for calibrated in (True, False)
    for stops in ({}, {"min_reach": 0.1}, {"min_confidence": 0.2}, {"max_entropy": 1.0}, {"min_level_reach": 0.4})
]
"""choices with every stopping rule"""


@pytest.fixture(scope="module", params=["causal", "feature"])
def tables(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[TraceTable]:
    trace = read_trace(save_tiny_trace(tmp_path_factory.mktemp("trace") / "tiny.sgt", request.param))
    playable = [text for text in trace.texts if len(text.tokens) > text.prompt + 1]
    return [
        TraceTable([text for text in playable if text.settings.greedy == greedy], trace.header)
        for greedy in (True, False)
    ]


def drawn(tables: list[TraceTable], count: int = 3000) -> tuple[OutcomeTable, np.ndarray, np.ndarray]:
    """A table that is not tabulated, and random choices at random roots."""
    choices = [*ParameterGrid().covered(tables[0].header.rule)][::31]
    table, rng = OutcomeTable(tables, [PLAIN, *choices, *OTHER]), np.random.default_rng(0)
    return table, rng.integers(len(table.choices), size=count), rng.choice(np.concatenate(table.roots), count)


def test_pairs_have_the_outcomes_of_whole_tables(tables: list[TraceTable]) -> None:
    table, choices, places = drawn(tables)
    found = table.grown(choices, places).rows(table.index.levels)
    assert all(table._growers), "the test needs a compiler"
    for number, parameters in enumerate(table.choices):
        for texts, roots in zip(tables, table.roots, strict=True):
            pairs = np.flatnonzero((choices == number) & np.isin(places, roots))
            whole = tabulate(texts, parameters).rows(table.index.levels)
            assert np.array_equal(found[pairs], whole[np.searchsorted(roots, places[pairs])]), parameters
    assert len(np.unique(found, axis=0)) > 50, "the test would be vacuous"


def test_without_compiled_code_the_outcomes_are_the_same(tables: list[TraceTable]) -> None:
    table, choices, places = drawn(tables, 300)
    found = table.grown(choices, places)
    table._growers = [None, None]
    for one, other in zip(table.grown(choices, places), found, strict=True):
        assert np.array_equal(one, other)


def test_a_round_alone_is_the_same_in_both_ways(tables: list[TraceTable]) -> None:
    accepted = 0
    for texts in tables:
        text = max(texts.texts, key=lambda text: len(text.tokens))
        compiled, plain = TextReplay(text, texts.header), TextReplay(text, texts.header)
        plain.grower = None
        for position in range(text.prompt, len(text.tokens) - 1):
            for parameters in OTHER[position % 3 :: 3]:
                outcome = compiled.outcome(position, parameters)
                assert outcome == plain.outcome(position, parameters)
                accepted += outcome[0].accepted_lookup
            assert compiled.match(position) == plain._match(position)
    assert accepted > 0, "the test would be vacuous"


def test_a_round_that_was_not_recorded_is_refused_where_it_is_asked_for_alone(tables: list[TraceTable]) -> None:
    wide = TreeParameters(8, 8, frontier_width=60)
    table = OutcomeTable(tables, [wide, TreeParameters(1, 1)])
    places = np.concatenate(table.roots)
    assert table.grown(np.ones(len(places), np.int64), places).drafted.max() > 0
    with pytest.raises(UnrecordedError, match="Ask for a tree within the recorded ones"):
        table.grown(np.zeros(len(places), np.int64), places)


def test_more_candidates_than_were_recorded_are_left_to_numpy(tables: list[TraceTable]) -> None:
    grower = TreeGrower.of(tables[0])
    assert grower is not None
    root = int(tables[0].roots[0])
    wide = TreeParameters(1, 1, 5, 5, 5, source="model")
    assert grower.outcome(root, wide) is None
    assert grower.outcome(root, dataclasses.replace(wide, source="lookup")) is not None


@pytest.mark.parametrize("bound", [0.05, 0.1, 0.3, 0.5, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("strict", [False, True])
def test_a_bound_as_a_logarithm_divides_numbers_as_numpy_does(bound: float, strict: bool) -> None:
    least = _least_log(bound, strict)
    near = np.linspace(least - 1e-12, least + 1e-12, 1001)
    passes = np.exp(near) > bound if strict else np.exp(near) >= bound
    assert np.array_equal(passes, near >= least)
    assert 0 < passes.sum() < len(near)

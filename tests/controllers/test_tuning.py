"""Knobs are set by throughput on the texts that are given, and every value tried is tried."""

from __future__ import annotations

import pytest

from controllers.evaluation.replays import Evaluation
from controllers.evaluation.tuning import KNOBS, specifications, tune
from controllers.registry import controller_names, make_controller
from env.errors import ParameterError, TraceError, UnknownNameError
from env.latency.families import compute_bound, overhead_bound
from env.traces.file import Trace, read_trace
from tests.tiny_trace import save_tiny_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return read_trace(save_tiny_trace(tmp_path_factory.mktemp("trace") / "tiny.sgt", prompts=4))


def greedy(trace: Trace) -> Evaluation:
    return Evaluation([text for text in trace.texts if text.settings.greedy], trace.header)


def test_the_best_of_all_combinations_is_chosen_by_throughput(trace: Trace) -> None:
    texts, knobs = greedy(trace).texts, {"depth": (1, 3), "branch": (1, 2)}
    for profile, deepest in ((overhead_bound(row=0.0), "3"), (compute_bound(fixed=0.0), "1")):
        found = tune("fixed_tree", texts, trace.header, profile, knobs=knobs)
        assert list(found.tried) == [
            f"fixed_tree:depth={depth}:branch={branch}" for depth in (1, 3) for branch in (1, 2)
        ]
        assert found.throughput == max(found.tried.values()) == found.tried[found.specification]
        assert f"depth={deepest}" in found.specification
        rows = greedy(trace).controller(found.specification, profile)
        assert found.throughput == pytest.approx(sum(row.tokens for row in rows) / sum(row.seconds for row in rows))


def test_a_guard_stays_behind_the_options() -> None:
    assert specifications("history:window=20+guarded:rest=8", {"target": (0.5,)}) == [
        "history:window=20:target=0.5+guarded:rest=8"
    ]


def test_without_knobs_the_defaults_are_all_there_is(trace: Trace) -> None:
    found = tune("dynamic_depth", greedy(trace).texts, trace.header, overhead_bound())
    assert list(found.tried) == ["dynamic_depth"]


@pytest.mark.parametrize("name", KNOBS)
def test_what_is_tried_by_default_can_be_made(name: str) -> None:
    assert name in controller_names()
    tried = specifications(name, KNOBS[name])
    assert len(tried) == len(set(tried)) > 1
    for specification in tried:
        make_controller(specification)


def test_what_cannot_be_tried_is_refused(trace: Trace) -> None:
    texts, profile = greedy(trace).texts, overhead_bound()
    with pytest.raises(ParameterError, match="one value or more to try of depth; got none"):
        tune("fixed_tree", texts, trace.header, profile, knobs={"depth": ()})
    with pytest.raises(UnknownNameError, match="Unknown option of fixed_tree 'deep'"):
        tune("fixed_tree", texts, trace.header, profile, knobs={"deep": (1,)})
    with pytest.raises(TraceError, match="got none"):
        tune("fixed_tree", [], trace.header, profile)

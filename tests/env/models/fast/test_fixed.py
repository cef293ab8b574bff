"""Forwards in fixed shapes give the same numbers as others, captured or not, whatever their memory held before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specgym.env.drafts import FeatureDraft
from specgym.env.models.fast import graphs
from specgym.env.models.fast.fixed import FixedForward, Results, shape_for
from specgym.env.models.fast.graphs import Graph, Graphs
from specgym.env.models.target import CachedModel, TargetModel
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings
from tests.env.models.fast.test_lean import FAMILIES, TEXT, build
from tests.support.tiny_models import (
    causal_draft,
    feature_draft,
    generate,
    make_prompt,
    tiny_llama,
    tiny_network,
    tiny_target,
)

BRANCHES = np.array([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 1, 0, 1]], bool)
DEPTHS = np.array([0, 1, 1, 2, 2])
TREE = np.array([4, 2, 11, 12, 9])
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every device use fixed shapes."""
    monkeypatch.setattr(graphs, "_FIXED_ON", frozenset({"cpu", "cuda"}))


def fixed_forward(owner: object) -> FixedForward:
    """Returns the fixed forward of a lean model or draft, which must have one."""
    forward = owner._fixed  # type: ignore[attr-defined]
    assert isinstance(forward, FixedForward), "the test would be vacuous"
    return forward


def walk(cached: CachedModel) -> Iterator[torch.Tensor]:
    """Yields logits of a text, of plain steps, of a tree, and after an accepted branch of it."""
    cached.cache.reset()
    yield cached.extend(TEXT)
    for token in (4, 9):
        yield cached.extend([token])
    prefix = cached.cache.length
    yield cached.extend_tree(TREE, prefix + DEPTHS, BRANCHES)
    cached.cache.keep_path(prefix, np.array([0, 2, 4]))
    yield cached.extend([7])
    prefix = cached.cache.length
    yield cached.extend_tree(TREE, prefix + DEPTHS, BRANCHES, keep=2)


@given(st.integers(1, 64), st.integers(0, 10_000))
def test_a_shape_is_large_enough_and_few_are_needed(rows: int, start: int) -> None:
    shape = shape_for(rows, start)
    assert rows <= shape.rows < 2 * rows
    assert start + shape.rows <= shape.columns
    assert shape.columns == 256 or shape.columns < 2 * (start + shape.rows)
    for size in shape:
        assert size & (size - 1) == 0, "powers of two"


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_any_other_shape(family: str, everywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        model = CachedModel(build(family))
        fixed_forward(model._lean)
        found = list(walk(model))
        monkeypatch.undo()
        expected = CachedModel(build(family))
        assert expected._lean is not None
        assert expected._lean._fixed is None, "the test would be vacuous"
        for one, other in zip(found, walk(expected), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)  # norms are in float32


@pytest.mark.parametrize("layers", [(), (0,), (0, 1)])
def test_states_are_shown_of_the_rows_alone(
    layers: tuple[int, ...], everywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def states(target: TargetModel) -> list[torch.Tensor]:
        target.show_features(layers)
        with torch.inference_mode():
            return [target.features for _ in walk(target) if target.features is not None]

    found = states(tiny_target())
    monkeypatch.undo()
    expected = states(tiny_target())
    assert len(found) == len(expected) == 6
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_results_are_the_callers_own(everywhere: None) -> None:
    target = tiny_target()
    target.show_features((0,))
    with torch.inference_mode():
        target.extend(TEXT)
        logits = target.extend([4])
        features = target.features
        assert features is not None
        kept = logits.clone(), features.clone()
        target.extend([9])
    assert logits.equal(kept[0])
    assert features.equal(kept[1])


@pytest.mark.parametrize("layers", [1, 2])
def test_a_feature_draft_guesses_the_same(layers: int, everywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def guesses() -> list[torch.Tensor]:
        draft = FeatureDraft(tiny_network(layers=layers).double(), tiny_llama().get_input_embeddings(), 128)
        if lean_fixed:
            fixed_forward(draft.lean)
        generator = torch.Generator().manual_seed(1)
        features = torch.randn(40, 32, generator=generator, dtype=torch.float64)
        found: list[torch.Tensor] = []
        with torch.inference_mode():
            found += draft.forward(np.array(TEXT), features[:6], np.arange(6), None, keep=1)
            found += draft.forward(np.array([4]), features[6:7], np.array([6]), None, keep=1)
            visible = np.tri(3, dtype=bool)
            found += draft.forward(TREE[:3], features[7:10], np.arange(7, 10), visible, keep=0)
            found += draft.forward(TREE, features[10:15], 10 + DEPTHS, BRANCHES, keep=5)
        return found

    lean_fixed = True
    found = guesses()
    lean_fixed = False
    monkeypatch.undo()
    for one, other in zip(found, guesses(), strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sampling", [SamplingSettings(), SamplingSettings(1.0, seed=3)])
@pytest.mark.parametrize("kind", ["causal", "feature"])
def test_texts_are_those_of_any_other_shape_past_every_bound(
    kind: str, sampling: SamplingSettings, everywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = {"causal": causal_draft, "feature": lambda target: feature_draft(target, feature_layers=(0,))}[kind]
    request = Request(make_prompt(2, 240), 300, sampling)
    target = tiny_target(max_position_embeddings=600)
    found = generate(target, make(target), request, "dynamic_depth")
    shapes = set(fixed_forward(target._lean)._inputs)
    assert {shape.columns for shape in shapes} == {256, 512, 1024}
    assert len({shape.rows for shape in shapes}) > 2
    monkeypatch.undo()
    plain = tiny_target(max_position_embeddings=600)
    expected = generate(plain, make(plain), request)
    assert found.tokens == expected.tokens
    assert len(set(expected.tokens)) > 8, "the test would be vacuous"


def test_a_text_that_failed_leaves_nothing_behind(everywhere: None) -> None:
    target = tiny_target()
    draft = feature_draft(target)
    request = Request(make_prompt(1), 20)
    expected = generate(target, draft, request, "dynamic_depth")
    with torch.inference_mode():
        for buffer in (*target.cache.layers, *draft.caches):
            buffer.keys.fill_(torch.nan)
            buffer.values.fill_(torch.nan)
    assert generate(target, draft, request, "dynamic_depth").tokens == expected.tokens


@pytest.mark.parametrize("token", [-1, 31])
def test_an_unknown_token_is_refused_and_nothing_is_appended(token: int, everywhere: None) -> None:
    target = tiny_target()
    with torch.inference_mode():
        target.extend(TEXT)
        before = target.cache.length
        with pytest.raises(IndexError, match=f"tokens of the 31 that the model has; got 5 to {token}|got -1 to 5"):
            target.extend_tree(np.array([5, token]), np.array([6, 7]), np.tri(2, dtype=bool))
    assert target.cache.length == before


def test_without_graphs_there_is_a_warning_and_the_text_is_the_same(
    everywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("out of memory")

    request = Request(make_prompt(1), 12)
    expected, target = (generate(tiny_target(), feature_draft(tiny_target()), request), tiny_target())
    monkeypatch.setattr(torch.cuda, "Stream", fail)
    graphs_of = fixed_forward(target._lean).graphs
    graphs_of.capturing = True
    with pytest.warns(UserWarning, match=r"could not be captured as a CUDA graph \(out of memory\)") as warned:
        found = generate(target, feature_draft(target), request)
    assert found.tokens == expected.tokens
    assert len(warned) == 1
    assert not graphs_of.capturing


class Launches:
    """Replaces capturing: launching a graph runs the work again, into the memory of the first run."""

    def __init__(self) -> None:
        self.captured = 0

    def capture(self, work: Callable[[], Results], before: object) -> Graph[Results]:
        self.captured += 1
        results = work()

        class Replayed:
            def replay(self) -> None:
                final, logits, outputs = work()
                for old, new in zip([*results[:2], *results[2]], [final, logits, *outputs], strict=True):
                    old.copy_(new)

        return Graph(Replayed(), results)  # type: ignore[arg-type]


def test_graphs_are_kept_while_their_memory_stays_and_made_anew_when_it_has_moved(
    everywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(make_prompt(1, 200), 120)
    plain = tiny_target(max_position_embeddings=600)
    expected = generate(plain, causal_draft(plain), request)
    launches, target = Launches(), tiny_target(max_position_embeddings=600)
    monkeypatch.setattr(Graphs, "_captured", launches.capture)
    fixed_forward(target._lean).graphs.capturing = True
    draft = causal_draft(target)
    first = generate(target, draft, request, "fixed_tree")
    assert first.tokens == expected.tokens
    needed = launches.captured
    assert needed > 3
    assert generate(target, draft, request, "fixed_tree").tokens == expected.tokens
    again = launches.captured
    assert again > needed, "those of 256 columns wrote to buffers that have grown since"
    assert generate(target, draft, request, "fixed_tree").tokens == expected.tokens
    assert launches.captured == again


@needs_gpu
class TestOnAGpu:
    def test_captured_forwards_are_those_that_are_launched_piece_by_piece(self) -> None:
        captured, launched = (TargetModel(copy.deepcopy(tiny_llama()).to("cuda"), frozenset()) for _ in range(2))
        fixed_forward(launched._lean).graphs.capturing = False
        with torch.inference_mode():
            for _ in range(2):  # captured, and then launched again
                for one, other in zip(walk(captured), walk(launched), strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        assert fixed_forward(captured._lean).graphs.capturing
        assert len(fixed_forward(captured._lean).graphs) > 1

    @pytest.mark.parametrize("sampling", [SamplingSettings(), SamplingSettings(1.0, seed=3)])
    def test_texts_are_those_of_plain_decoding(self, sampling: SamplingSettings) -> None:
        target = TargetModel(tiny_llama(max_position_embeddings=600).to("cuda"), frozenset())
        request = Request(make_prompt(2, 240), 300, sampling)
        found = generate(target, feature_draft(target, feature_layers=(0,)), request, "dynamic_depth")
        assert found.tokens == generate(target, causal_draft(target), request).tokens

    def test_a_forward_does_not_wait_for_the_device(self) -> None:
        target = TargetModel(tiny_llama().to("cuda"), frozenset())
        with torch.inference_mode():
            list(walk(target))
            prefix = target.cache.length
            torch.cuda.set_sync_debug_mode("error")
            try:
                target.extend([7])
                target.extend_tree(TREE, prefix + 1 + DEPTHS, BRANCHES)
            finally:
                torch.cuda.set_sync_debug_mode("default")

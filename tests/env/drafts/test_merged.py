"""Draft model and prompt lookup in one tree: both are asked what they should be, and no more than that."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from specgym.env.common.arrays import IntArray
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts import CausalDraft, MergedDraft
from specgym.env.drafts.calibrator import CalibrationMap, Calibrator
from specgym.env.drafts.merged import merge
from specgym.env.models.target import CachedModel
from specgym.env.tree.growth import Candidates, grow_tree
from specgym.env.tree.parameters import SOURCES, Source, TreeParameters
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings, TokenChooser
from specgym.env.tree.tree import TokenTree
from tests.support.tiny_models import causal_draft, chain, make_draft, make_prompt, tiny_target, tree_parameters

NO_NODES: IntArray = np.empty(0, np.int64)
TARGET = tiny_target()
BOTH = TreeParameters(base_depth=5, max_depth=5, source="both")


@st.composite
def offers(draw: st.DrawFn, k: int, *, from_lookup: bool) -> Candidates:
    """Up to k candidates after each of two nodes."""
    tokens, log_probs = np.zeros((2, k), np.int64), np.full((2, k), -np.inf)
    for row in range(2):
        found = draw(st.lists(st.integers(0, 5), max_size=k, unique=True))
        odds = draw(st.lists(st.floats(0.001, 1), min_size=len(found), max_size=len(found)))
        tokens[row, : len(found)], log_probs[row, : len(found)] = found, np.log(sorted(odds, reverse=True))
    return Candidates(tokens, log_probs, np.exp(log_probs[:, 0]), log_probs > -np.inf if from_lookup else None)


def offered(candidates: Candidates, row: int) -> dict[int, float]:
    pairs = zip(candidates.tokens[row].tolist(), np.exp(candidates.log_probs[row]).tolist(), strict=True)
    listed = [(token, probability) for token, probability in pairs if probability > 0]
    assert len(dict(listed)) == len(listed), "a token is offered once"
    return dict(listed)


class TestMerge:
    @given(st.data())
    def test_every_token_is_offered_once_with_what_both_say_of_it_and_the_best_k_stay(
        self, data: st.DataObject
    ) -> None:
        k = data.draw(st.integers(1, 5), "k")
        model = data.draw(offers(data.draw(st.integers(1, 5), "model's k"), from_lookup=False), "model")
        lookup = data.draw(offers(k, from_lookup=True), "lookup")
        merged = merge(model, lookup, k) if data.draw(st.booleans()) else merge(model, lookup, 99)
        for row in range(2):
            first, second, found = offered(model, row), offered(lookup, row), offered(merged, row)
            every = {
                token: 1 - (1 - first.get(token, 0)) * (1 - second.get(token, 0))
                for token in first.keys() | second.keys()
            }
            assert {token: pytest.approx(every[token]) for token in found} == found
            kept = merged.tokens.shape[1]
            np.testing.assert_allclose(list(found.values()), sorted(every.values(), reverse=True)[:kept])
            assert kept >= min(len(every), k)
            assert merged.confidence[row] == max(model.confidence[row], lookup.confidence[row])
            if merged.from_lookup is None:
                assert not second
            else:
                real = merged.log_probs[row] > -np.inf
                alone = set(merged.tokens[row, real & merged.from_lookup[row]].tolist())
                assert alone == found.keys() - first.keys()
        assert (merged.log_probs <= 0).all()

    @given(offers(4, from_lookup=False))
    def test_where_lookup_has_nothing_to_say_the_models_candidates_stay_as_they_are(self, model: Candidates) -> None:
        silent = Candidates(np.zeros((2, 4), np.int64), np.full((2, 4), -np.inf), np.zeros(2))
        merged = merge(model, silent, 4)
        np.testing.assert_array_equal(merged.tokens, model.tokens)
        np.testing.assert_array_equal(merged.log_probs, model.log_probs)

    def test_a_certain_token_stays_certain(self) -> None:
        model = Candidates(np.array([[7]]), np.zeros((1, 1)), np.ones(1))
        lookup = Candidates(np.array([[7, 8]]), np.log([[0.9, 0.05]]), np.full(1, 0.9), np.ones((1, 2), np.bool_))
        merged = merge(model, lookup, 2)
        assert merged.tokens.tolist() == [[7, 8]]
        assert merged.log_probs[0, 0] == 0.0


@contextlib.contextmanager
def counted_rows(draft: CausalDraft) -> Iterator[list[int]]:
    """The rows of every forward of a draft's model."""
    rows: list[int] = []
    hook = draft.model.model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: rows.append(output.shape[-2])
    )
    yield rows
    hook.remove()


GREEDY = SamplingSettings()


def merged_draft(
    text: list[int], calibrator: Calibrator | None = None, sampling: SamplingSettings = GREEDY
) -> MergedDraft:
    """A causal draft merged with lookup that was given a text."""
    draft = causal_draft(TARGET)
    draft.calibrator = calibrator
    merged = MergedDraft(draft)
    merged.start(TokenChooser(sampling, TARGET.vocabulary, TARGET.device))
    merged.commit(text, None, NO_NODES)
    return merged


def grown(merged: MergedDraft, text: list[int], parameters: TreeParameters) -> TokenTree:
    with torch.inference_mode():
        return grow_tree(text[-1], parameters, merged.expander(parameters))


class TestWhoIsAsked:
    @settings(max_examples=50)
    @given(tree_parameters(), st.integers(0, 100))
    def test_the_model_reads_what_it_proposed_itself_and_nothing_else(
        self, parameters: TreeParameters, seed: int
    ) -> None:
        text, asked = list(make_prompt(seed, 20)), []
        merged = merged_draft(text)
        assert isinstance(merged.model, CausalDraft)

        def expand(tree: TokenTree, nodes: IntArray, k: int) -> Candidates:
            asked.append(int((~tree.from_lookup[nodes]).sum()))
            return merged.expander(parameters)(tree, nodes, k)

        with counted_rows(merged.model) as rows, torch.inference_mode():
            tree = grow_tree(text[-1], parameters, expand)
        if parameters.source == "lookup":
            assert tree.from_lookup[1:].all()
            assert rows == []
        elif asked:
            assert rows == [len(text), *(count for count in asked[1:] if count)]  # the text is read with the root
        assert parameters.source != "model" or not tree.from_lookup.any()
        assert tree.from_lookup[1:][tree.from_lookup[tree.parent[1:]]].all(), "lookup goes on from lookup"
        event(f"{parameters.source}, lookup alone proposed some: {bool(tree.from_lookup.any())}")

    @torch.inference_mode()
    def test_in_a_mixed_level_every_node_gets_what_those_say_who_can(self) -> None:
        text = [5, 6, 7, 5, 8, 9, 5, 6, 7, 5, 8, 9, 5]
        tree, root = TokenTree(text[-1]), np.zeros(1, np.int64)
        nodes = tree.add(np.zeros(3, np.int64), np.array([6, 8, 11]), np.zeros(3), np.array([False, True, False]))
        level = {}
        for source in SOURCES:
            expand = merged_draft(text).expander(TreeParameters(source=source))
            expand(tree, root, 4)
            own = nodes[[0, 2]] if source == "model" else nodes
            level[source] = expand(tree, own, 4)
        model, lookup, both = (level[source] for source in SOURCES)
        assert (lookup.confidence > 0).tolist() == [True, True, False]
        np.testing.assert_array_equal(both.confidence[[0, 2]], np.maximum(model.confidence, lookup.confidence[[0, 2]]))
        assert both.confidence[1] == lookup.confidence[1]
        assert offered(both, 1) == offered(lookup, 1)
        assert offered(both, 2) == offered(model, 1)
        assert offered(both, 0).keys() <= offered(model, 0).keys() | offered(lookup, 0).keys()
        assert model.confidence.min() > 0, "the test would be vacuous"

    def test_levels_of_lookup_alone_cost_no_forward(self) -> None:
        text = [*range(20), 25, *range(3, 8)]  # 8, 9, 10 ... follow, of which the model knows nothing
        merged = merged_draft(text)
        assert isinstance(merged.model, CausalDraft)
        with counted_rows(merged.model) as rows:
            tree = grown(merged, text, dataclasses.replace(chain(9), source="both"))
        assert tree.token.tolist() == list(range(7, 17))
        assert tree.from_lookup[1:].all()
        assert rows == [len(text)]

    @pytest.mark.parametrize("source", SOURCES)
    def test_a_pair_whose_draft_is_lookup_answers_every_source_with_it(self, source: Source) -> None:
        decoder = LiveDecoder(TARGET, make_draft("lookup", TARGET))
        drafted = 0
        for seed in range(5):
            decoder.start(Request(make_prompt(seed, 12), 30))
            while decoder.under_way:
                outcome = decoder.round(dataclasses.replace(BOTH, source=source))
                assert (outcome.drafted_lookup, outcome.accepted_lookup) == (outcome.drafted, outcome.accepted)
                drafted += outcome.drafted
        assert drafted > 0, "the test would be vacuous"


def test_where_a_sure_model_and_lookup_agree_the_tree_is_the_models_own() -> None:
    sure = causal_draft(TARGET)
    sure.model.model.lm_head.weight.data *= 30
    decoder, agreed = LiveDecoder(TARGET, sure), 0
    for seed in range(3):
        decoder.start(Request(make_prompt(seed), 90))
        while decoder.under_way:
            decoder.round(chain(1))
            text, trees = list(decoder.tokens), []
            for source in SOURCES:
                merged = MergedDraft(CausalDraft(CachedModel(sure.model.model), TARGET.vocabulary))
                merged.start(decoder.chooser)
                merged.commit(text, None, NO_NODES)
                trees.append(grown(merged, text, dataclasses.replace(BOTH, source=source)))
            model, lookup, both = trees
            if model.log_prob.min() > np.log(0.8) and np.array_equal(model.token, lookup.token):
                np.testing.assert_array_equal(both.token, model.token)
                np.testing.assert_array_equal(both.parent, model.parent)
                assert not both.from_lookup.any()
                assert (both.log_prob >= model.log_prob).all()
                agreed += 1
    assert agreed > 3, "the test would be vacuous"


def curve(slope: float, offset: float, margin: float = 0.0) -> CalibrationMap:
    """One map for all depths and the first four ranks; lower ranks become less likely."""
    ranks = np.arange(4.0)
    offsets = offset - np.array([[0.0], [1.0]]) - ranks * 0.1
    return CalibrationMap(np.full(4, slope), np.full(4, slope), np.full(4, margin), offsets)


CALIBRATOR = Calibrator(greedy=curve(0.7, -0.3, 0.5), sampled=curve(0.1, -3.0))


class TestCalibration:
    @torch.inference_mode()
    @pytest.mark.parametrize("source", ["model", "both"])
    def test_reach_is_calibrated_where_the_parameters_say_so_and_confidence_never_is(self, source: Source) -> None:
        text = list(make_prompt(3, 9))

        def found(calibrator: Calibrator | None, calibrated: bool) -> Candidates:
            expand = merged_draft(text, calibrator).expander(TreeParameters(source=source, calibrated=calibrated))
            return expand(TokenTree(text[-1]), np.zeros(1, np.int64), 4)

        own, off, on = found(None, True), found(CALIBRATOR, False), found(CALIBRATOR, True)
        np.testing.assert_array_equal(off.tokens, own.tokens)
        np.testing.assert_array_equal(off.log_probs, own.log_probs)
        assert not np.isclose(on.log_probs, own.log_probs).all()
        assert on.confidence == own.confidence == off.confidence

    @torch.inference_mode()
    @pytest.mark.parametrize(
        "sampling", [SamplingSettings(), SamplingSettings(1.0, seed=4)], ids=["greedy", "sampling"]
    )
    def test_children_are_calibrated_by_depth_and_mode_and_sorted_best_first(self, sampling: SamplingSettings) -> None:
        text, found = list(make_prompt(3, 9)), []
        for calibrator in (None, CALIBRATOR):
            expand = merged_draft(text, calibrator, sampling).expander(TreeParameters())
            tree = TokenTree(text[-1])
            first = expand(tree, np.zeros(1, np.int64), 4)
            nodes = tree.add(np.zeros(2, np.int64), np.array([5, 6]), np.zeros(2))
            found.append((first, expand(tree, nodes, 4)))
        for depth, (raw, made) in enumerate(zip(*found, strict=True), 1):
            mapped = CALIBRATOR.calibrate(raw.log_probs, depth, sampling.greedy)
            order = np.argsort(-mapped, axis=1, kind="stable")
            np.testing.assert_array_equal(made.tokens, np.take_along_axis(raw.tokens, order, axis=1))
            np.testing.assert_allclose(made.log_probs, np.take_along_axis(mapped, order, axis=1))

    def test_a_child_is_rated_alike_however_many_are_asked_for(self) -> None:
        text = list(make_prompt(3, 9))
        rated = []
        for k in (1, 2, 4):
            with torch.inference_mode():
                expand = merged_draft(text, CALIBRATOR).expander(TreeParameters())
                found = expand(TokenTree(text[-1]), np.zeros(1, np.int64), k)
            assert found.tokens.shape == found.log_probs.shape == (1, k)
            rated.append(found.log_probs[0, 0])
        assert rated == [pytest.approx(rated[0])] * 3

    @torch.inference_mode()
    def test_lookup_is_not_calibrated(self) -> None:
        text = [*range(20), 25, *range(3, 8)]
        trees = [
            grown(merged_draft(text, calibrator), text, dataclasses.replace(chain(6), source=source))
            for calibrator, source in [(None, "lookup"), (CALIBRATOR, "lookup"), (CALIBRATOR, "both")]
        ]
        assert [len(tree) for tree in trees] == [7, 7, 7]
        for tree in trees[1:]:
            np.testing.assert_array_equal(tree.token, trees[0].token)
            np.testing.assert_array_equal(tree.log_prob, trees[0].log_prob)

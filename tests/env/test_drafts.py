"""Drafts: whatever happened before, they guess as if they had just read the whole text."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from env.drafts import CausalDraft, Draft, LookupDraft
from env.drafts.network import load_network, save_network
from env.errors import ModelFileError, NumericalError, PairError, ParameterError
from env.growth import Candidates, grow_tree
from env.live import LiveDecoder
from env.models.cache import KeyValueBuffer
from env.models.target import CachedModel, TargetModel
from env.parameters import TreeParameters
from env.rounds import Request
from env.sampling import SamplingSettings, TokenChooser
from env.tree import IntArray, TokenTree
from tests.tiny import (
    VOCABULARY,
    causal_draft,
    feature_draft,
    make_draft,
    make_prompt,
    rounds_until_the_end,
    sampling_settings,
    tiny_llama,
    tiny_network,
    tiny_target,
    tree_parameters,
)

NO_NODES: IntArray = np.empty(0, np.int64)
ROOT: IntArray = np.zeros(1, np.int64)
TARGET = tiny_target()
DRAFTS = {kind: make_draft(kind, TARGET) for kind in ("causal", "feature")}
WIDE = TreeParameters(base_depth=3, max_depth=3, min_branch=2, mid_branch=2, max_branch=2)


def read_anew(draft: Draft, target: TargetModel, text: list[int], sampling: SamplingSettings) -> None:
    """Lets a draft read a whole text at once, as at the start of a request."""
    target.show_features(draft.needs_features)
    target.cache.reset()
    target.extend(text[:-1])
    draft.start(TokenChooser(sampling, target.vocabulary, target.device))
    draft.commit(text, target.features, NO_NODES)


def assert_same(found: Candidates, expected: Candidates) -> None:
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)  # the ranking is in float32


def assert_as_if_read_anew(decoder: LiveDecoder, sampling: SamplingSettings) -> None:
    """The draft's next tree is that of a draft that reads the text so far at once."""
    draft, text = decoder.draft, decoder.tokens
    with torch.inference_mode():
        used = grow_tree(text[-1], WIDE, draft.expand)
        read_anew(draft, TARGET, text, sampling)
        fresh = grow_tree(text[-1], WIDE, draft.expand)
    assert len(fresh) > 3, "the test would be vacuous"
    assert_same(Candidates(used.token[None], used.log_prob[None]), Candidates(fresh.token[None], fresh.log_prob[None]))


@settings(max_examples=50)
@given(st.sampled_from(["causal", "feature"]), st.lists(tree_parameters(4), max_size=6), sampling_settings())
def test_after_any_rounds_a_draft_grows_the_tree_of_one_that_reads_the_whole_text_anew(
    kind: str, rounds: list[TreeParameters], sampling: SamplingSettings
) -> None:
    decoder = LiveDecoder(TARGET, DRAFTS[kind])
    decoder.start(Request(make_prompt(len(rounds)), 60, sampling))
    rounds_until_the_end(decoder, rounds)
    assert_as_if_read_anew(decoder, sampling)


def test_a_tree_that_was_cut_before_it_was_verified_leaves_the_right_rows() -> None:
    decoder = LiveDecoder(TARGET, causal_draft(TARGET, 0.03))
    for seed in range(8):
        decoder.start(Request(make_prompt(seed), 60))
        outcome = decoder.round(TreeParameters(4, 4, 3, 3, 3, node_budget=7))
        assert_as_if_read_anew(decoder, SamplingSettings())
        if outcome.accepted >= 2:
            break
    assert outcome.accepted >= 2, "the test would be vacuous"


@pytest.mark.parametrize("kind", ["causal", "feature"])
def test_rounds_of_that_kind_keep_rows_of_accepted_nodes_and_owe_others(kind: str) -> None:
    draft, decoder = DRAFTS[kind], LiveDecoder(TARGET, DRAFTS[kind])
    accepted = []
    for seed in range(10):
        decoder.start(Request(make_prompt(seed), 30, SamplingSettings(1.0)))
        while decoder.under_way:
            accepted.append(decoder.round(TreeParameters()).accepted)
    assert {0, 1, 2} < set(accepted), "the test above would be vacuous"
    assert draft.forward_seconds > 0


@torch.inference_mode()
def test_a_causal_drafts_candidates_in_a_tree_are_the_models_after_each_branch_alone() -> None:
    draft, text = causal_draft(TARGET), list(make_prompt(1))
    read_anew(draft, TARGET, text, SamplingSettings())
    tree = grow_tree(text[-1], WIDE, draft.expand)
    with TARGET.lent():
        draft.model.restore()
        for node in range(1, len(tree)):
            branch = tree.token[tree.ancestors[node]].tolist()
            logits = draft.model.model(torch.tensor([text[:-1] + branch[:-1]])).logits[0, -1]
            assert logits.log_softmax(-1)[branch[-1]].item() == pytest.approx(tree.log_prob[node], abs=1e-5)
    assert len(tree) == 15


@torch.inference_mode()
def test_a_feature_drafts_candidates_in_a_tree_are_those_after_each_branch_alone() -> None:
    draft, text = feature_draft(TARGET), list(make_prompt(1))
    read_anew(draft, TARGET, text, SamplingSettings())
    offers: dict[tuple[int, ...], Candidates] = {}

    def expand(tree: TokenTree, nodes: IntArray, k: int) -> Candidates:
        found = draft.expand(tree, nodes, k)
        for row, node in enumerate(nodes):
            path = tuple(tree.token[tree.ancestors[node]].tolist())
            offers[path] = Candidates(found.tokens[row : row + 1], found.log_probs[row : row + 1])
        return found

    grow_tree(text[-1], WIDE, expand)
    assert len(offers) == 7
    for path, expected in offers.items():
        read_anew(draft, TARGET, text, SamplingSettings())
        tree, node = TokenTree(text[-1]), ROOT
        found = draft.expand(tree, node, 2)
        for token in path[1:]:
            node = tree.add(node, np.array([token]), np.zeros(1))
            found = draft.expand(tree, node, 2)
        assert_same(found, expected)


@torch.inference_mode()
def test_a_feature_draft_alone_goes_on_as_its_network_does_over_the_whole_text() -> None:
    draft, text, sampling = feature_draft(TARGET), list(make_prompt(1)), SamplingSettings(1.0)
    read_anew(draft, TARGET, text, sampling)
    states = TARGET.features
    assert states is not None
    chooser = TokenChooser(sampling, TARGET.vocabulary, TARGET.device)
    tree, node = TokenTree(text[-1]), ROOT
    for _ in range(4):
        found = draft.expand(tree, node, 3)
        # Row r holds token r + 1 and the state before it; the network's last output is the state to go on with.
        tokens = draft.embedding(torch.tensor([text[1:]]))
        output = draft.network(tokens, states[None], torch.arange(len(text) - 1), None, KeyValueBuffer())[0, -1:]
        assert_same(found, chooser.rank(draft.network.head(output), [len(text)], 3, draft.network.token_ids))
        states = torch.cat([states, output])
        text.append(int(found.tokens[0, 0]))
        node = tree.add(node, found.tokens[0, :1], found.log_probs[0, :1])


@torch.inference_mode()
def test_a_draft_with_more_rows_of_padding_than_the_target_never_proposes_them() -> None:
    padded = tiny_llama(1, vocab_size=40)
    padded.lm_head.weight[31:] *= 30
    proposals = {}
    for vocabulary in (31, 40):
        draft = CausalDraft(CachedModel(padded), vocabulary)
        read_anew(draft, TARGET, list(make_prompt(1)), SamplingSettings())
        proposals[vocabulary] = grow_tree(4, WIDE, draft.expand).token.max()
    assert proposals[31] < 31
    assert proposals[40] >= 31, "the test would be vacuous"


@torch.inference_mode()
@pytest.mark.parametrize("sampling", [SamplingSettings(), SamplingSettings(1.0)], ids=["greedy", "sampling"])
def test_a_draft_with_fewer_rows_of_padding_than_the_target_works(sampling: SamplingSettings) -> None:
    draft = CausalDraft(CachedModel(tiny_llama(1, vocab_size=25)), TARGET.vocabulary)
    text = [token % 25 for token in make_prompt(1)]
    read_anew(draft, TARGET, text, sampling)
    tree = grow_tree(text[-1], WIDE, draft.expand)
    assert len(tree) == 15
    assert tree.token.max() < 25


def test_a_feature_draft_for_hidden_states_of_another_width_is_refused() -> None:
    with pytest.raises(PairError, match=r"expects hidden states of 24 numbers; the target's have 32.*--draft lookup"):
        type(DRAFTS["feature"])(tiny_network(24), TARGET.model.get_input_embeddings(), 128)


@torch.inference_mode()
def test_nan_from_a_draft_is_an_error_that_names_the_draft() -> None:
    model = tiny_llama(1)
    model.lm_head.weight[3, 0] = torch.nan
    draft = CausalDraft(CachedModel(model), 31)
    read_anew(draft, TARGET, [4, 5], SamplingSettings())
    with pytest.raises(NumericalError, match="draft returned NaN"):
        grow_tree(5, WIDE, draft.expand)


class TestLookup:
    def lookup(self, text: list[int], path: tuple[int, ...] = (), k: int = 4, **options: int) -> dict[int, float]:
        """What is offered after `text` and `path`, best first."""
        draft = LookupDraft(**options)
        draft.start(TokenChooser(SamplingSettings(), VOCABULARY, torch.device("cpu")))
        draft.commit(text, None, NO_NODES)
        tree, node = TokenTree(text[-1]), ROOT
        for token in path:
            node = tree.add(node, np.array([token]), np.zeros(1))
        found = draft.expand(tree, node, k)
        offers = [
            (token, math.exp(log_prob))
            for token, log_prob in zip(found.tokens[0].tolist(), found.log_probs[0], strict=True)
            if log_prob > -math.inf
        ]
        assert len(dict(offers)) == len(offers), "a token is offered once"
        return dict(offers)

    def test_the_longest_match_comes_first(self) -> None:
        # "1 2 3" was followed by 9; "2 3", later, by 8.
        text = [1, 2, 3, 9, 5, 2, 3, 8, 6, 1, 2, 3]
        assert list(self.lookup(text)) == [9, 8]
        assert list(self.lookup(text, longest=2)) == [8, 9]

    def test_of_equal_matches_the_latest_comes_first(self) -> None:
        assert list(self.lookup([1, 2, 7, 4, 1, 2, 8, 5, 1, 2])) == [8, 7]

    def test_a_longer_match_counts_for_more(self) -> None:
        short, long = self.lookup([7, 2, 3, 9, 0, 2, 3]), self.lookup([7, 2, 3, 9, 0, 7, 2, 3])
        assert list(short) == list(long) == [9]
        assert long[9] > short[9]

    def test_matches_go_on_along_a_branch(self) -> None:
        text = [1, 2, 3, 9, 7, 1, 2]
        assert list(self.lookup(text)) == [3]
        assert list(self.lookup(text, (3,))) == [9]
        assert list(self.lookup(text, (3, 9))) == [7]
        assert not self.lookup(text, (4,))

    @pytest.mark.parametrize("text", [[5], [1, 2, 3, 4], [1, 2, 9, 2], [1, 1]])
    def test_without_a_match_nothing_is_proposed(self, text: list[int]) -> None:
        assert not self.lookup(text)

    def test_text_that_a_match_overlaps_counts(self) -> None:
        assert list(self.lookup([6, 6, 6])) == [6]

    @given(st.lists(st.integers(0, 2), min_size=1, max_size=25), st.lists(st.integers(0, 2), max_size=3))
    def test_offers_follow_the_longest_match_and_are_a_distribution(self, text: list[int], path: list[int]) -> None:
        offers = self.lookup(text, tuple(path))
        assert offers == self.lookup(text, tuple(path)), "it is deterministic"
        assert sum(offers.values()) <= 1 + 1e-9
        assert list(offers.values()) == sorted(offers.values(), reverse=True)
        whole = text + path
        found = None
        for length in range(2, min(8, len(whole)) + 1):
            for end in range(length, len(text)):
                if text[end - length : end] == whole[len(whole) - length :]:
                    found = text[end]  # the longest match so far, and the latest of that length
        assert next(iter(offers), None) == found

    @pytest.mark.parametrize(("shortest", "longest"), [(1, 8), (0, 2), (5, 4)])
    def test_lengths_that_the_rule_cannot_rate_are_refused(self, shortest: int, longest: int) -> None:
        with pytest.raises(ParameterError, match=f"2 <= shortest <= longest; got {shortest} and {longest}"):
            LookupDraft(shortest, longest)


class TestNetworkFile:
    def test_what_is_saved_is_what_is_loaded_in_bfloat16(self, tmp_path: Path) -> None:
        network, path = tiny_network(), tmp_path / "draft.safetensors"
        network.token_ids.copy_(torch.arange(20).flip(0) * 2)
        save_network(network, path, {"target": "someone/small-model"})
        loaded = load_network(path)
        assert loaded.config == network.config
        assert not loaded.training
        assert loaded.token_ids.tolist() == list(range(38, -1, -2))
        for name, weight in network.named_parameters():
            torch.testing.assert_close(dict(loaded.named_parameters())[name], weight.to(torch.bfloat16), rtol=0, atol=0)
        with safe_open(path, framework="pt") as file:
            assert file.metadata()["target"] == "someone/small-model"

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ModelFileError, match=r"nowhere\.safetensors; there is no such file"):
            load_network(tmp_path / "nowhere.safetensors")

    @pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.999])
    def test_a_truncated_file_is_named(self, tmp_path: Path, share: float) -> None:
        path = tmp_path / "draft.safetensors"
        save_network(tiny_network(), path, {})
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ModelFileError, match=r"draft\.safetensors is corrupt .*scripts\.distill"):
            load_network(path)

    def test_a_file_of_something_else_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        save_file({"weight": torch.zeros(3)}, path)
        with pytest.raises(ModelFileError, match=r"model\.safetensors is no feature draft: expected 'specgym"):
            load_network(path)
        path.write_text(json.dumps({"weight": 3}))
        with pytest.raises(ModelFileError, match=r"model\.safetensors is corrupt"):
            load_network(path)

    @pytest.mark.parametrize("change", ["shape", "option", "missing tensor", "no config", "bad config"])
    def test_a_file_that_contradicts_itself_is_named(self, tmp_path: Path, change: str) -> None:
        path, network = tmp_path / "draft.safetensors", tiny_network()
        shape = dataclasses.asdict(network.config)
        save_network(network, path, {})
        tensors = load_file(path)
        if change == "shape":
            shape["hidden_size"] = 24
        if change == "option":
            shape["layers"] = 2
        if change == "missing tensor":
            del tensors["down.weight"]
        metadata = {"format": "specgym feature draft 1", "config": json.dumps(shape)}
        if change == "no config":
            del metadata["config"]
        if change == "bad config":
            metadata["config"] = "{"
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(ModelFileError, match=r"draft\.safetensors is corrupt"):
            load_network(path)

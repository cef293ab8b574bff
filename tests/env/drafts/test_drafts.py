"""Drafts propose as if they had just read the whole text, no matter what happened before."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import ModelFileError, NumericalError, PairError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts import CausalDraft, Draft, MergedDraft
from specgym.env.drafts.network import FeatureDraftNetwork, load_network, save_network
from specgym.env.models.attention import attend
from specgym.env.models.target import CachedModel, TargetModel
from specgym.env.tree.growth import Candidates, grow_tree
from specgym.env.tree.parameters import Source, TreeParameters
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings, TokenChooser
from specgym.env.tree.tree import TokenTree
from tests.support.tiny_models import (
    causal_draft,
    feature_draft,
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
DRAFTS = {
    "causal": causal_draft(TARGET),
    "feature": feature_draft(TARGET, 1),
    "feature of several layers": feature_draft(TARGET, 1, 2, (0, 1)),
}
WIDE = TreeParameters(base_depth=3, max_depth=3, min_branch=2, mid_branch=2, max_branch=2)


def read_anew(draft: Draft, target: TargetModel, text: list[int], sampling: SamplingSettings) -> MergedDraft:
    """Lets a draft read a whole text at once, and returns it merged with prompt lookup."""
    target.show_features(draft.feature_layers)
    target.cache.reset()
    target.extend(text[:-1])
    merged = MergedDraft(draft)
    merged.start(TokenChooser(sampling, target.vocabulary, target.device))
    merged.commit(text, target.features, NO_NODES)
    return merged


def assert_same(found: Candidates, expected: Candidates) -> None:
    np.testing.assert_allclose(found.confidence, np.exp(found.log_probs[:, 0]))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)  # the ranking is in float32


def assert_as_if_read_anew(decoder: LiveDecoder, sampling: SamplingSettings, source: Source = "model") -> None:
    """Checks that the draft's next tree equals that of a draft that reads the text so far at once."""
    text, wide = decoder.tokens, dataclasses.replace(WIDE, source=source)
    with torch.inference_mode():
        used = grow_tree(text[-1], wide, decoder.merged.expander(wide))
        fresh = grow_tree(text[-1], wide, read_anew(decoder.draft, TARGET, text, sampling).expander(wide))
    assert len(fresh) > 3, "the test would be vacuous"
    np.testing.assert_array_equal(used.token, fresh.token)
    np.testing.assert_array_equal(used.from_lookup, fresh.from_lookup)
    np.testing.assert_allclose(used.log_prob, fresh.log_prob, atol=1e-5)  # the ranking is in float32


@settings(max_examples=100)
@given(
    kind=st.sampled_from(sorted(DRAFTS)),
    rounds=st.lists(tree_parameters(4), max_size=6),
    sampling=sampling_settings(),
    source=st.sampled_from(["model", "both"]),
)
def test_after_any_rounds_a_draft_grows_the_tree_of_one_that_reads_the_whole_text_anew(
    kind: str, rounds: list[TreeParameters], sampling: SamplingSettings, source: Source
) -> None:
    decoder = LiveDecoder(TARGET, DRAFTS[kind])
    decoder.start(Request(make_prompt(len(rounds)), 60, sampling))
    rounds_until_the_end(decoder, rounds)
    assert_as_if_read_anew(decoder, sampling, source)


@pytest.mark.parametrize("kind", DRAFTS)
def test_rounds_of_lookup_alone_run_no_draft_forward_and_leave_tokens_owed(kind: str) -> None:
    decoder = LiveDecoder(TARGET, DRAFTS[kind])
    decoder.start(Request(make_prompt(2), 60))
    decoder.round(WIDE)
    before, accepted = decoder.draft.forward_seconds, 0
    for _ in range(8):
        accepted += decoder.round(dataclasses.replace(WIDE, source="lookup")).accepted
    assert decoder.draft.forward_seconds == before
    assert accepted > 0, "the test would be vacuous"
    assert_as_if_read_anew(decoder, SamplingSettings())


def test_a_tree_that_was_cut_before_it_was_verified_leaves_the_right_rows() -> None:
    decoder = LiveDecoder(TARGET, causal_draft(TARGET, 0.03))
    for seed in range(8):
        decoder.start(Request(make_prompt(seed), 60))
        outcome = decoder.round(TreeParameters(4, 4, 3, 3, 3, node_budget=7))
        assert_as_if_read_anew(decoder, SamplingSettings())
        if outcome.accepted >= 2:
            break
    assert outcome.accepted >= 2, "the test would be vacuous"


@pytest.mark.parametrize("kind", DRAFTS)
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
        for node in range(1, len(tree)):
            branch = tree.token[tree.ancestors[node]].tolist()
            logits = draft.model.model(torch.tensor([text[:-1] + branch[:-1]])).logits[0, -1]
            expected = logits.log_softmax(-1)[branch[-1]].bfloat16().item()  # the precision of candidates
            assert expected == pytest.approx(tree.log_prob[node], rel=1e-6)
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
            one = slice(row, row + 1)
            offers[path] = Candidates(found.tokens[one], found.log_probs[one], found.confidence[one])
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
@pytest.mark.parametrize("kind", DRAFTS)
def test_nodes_left_out_of_a_level_make_no_difference_to_the_others(kind: str) -> None:
    draft, text = DRAFTS[kind], list(make_prompt(1))
    tree = TokenTree(text[-1])
    first = tree.add(np.zeros(3, np.int64), np.array([5, 6, 7]), np.zeros(3))
    second = tree.add(np.repeat(first, 2), np.arange(10, 16), np.zeros(6))
    last = tree.add(second, np.arange(20, 26), np.zeros(6))

    def found(levels: list[IntArray]) -> dict[int, Candidates]:
        read_anew(draft, TARGET, text, SamplingSettings())
        offers = {}
        for nodes in [ROOT, *levels]:
            made = draft.expand(tree, nodes, 3)
            for row, node in enumerate(nodes.tolist()):
                one = slice(row, row + 1)
                offers[node] = Candidates(made.tokens[one], made.log_probs[one], made.confidence[one])
        return offers

    whole = found([first, second, last])
    part = found([first[1:], second[[2, 5]], last[[5]]])
    assert len(part) == 6
    for node, offer in part.items():
        assert_same(offer, whole[node])


def whole_text_output(network: FeatureDraftNetwork, tokens: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The network's output over a whole text, `[1, rows, hidden]`."""
    stream = network.begin(tokens, features)
    rotation = network.rotary(torch.arange(tokens.shape[1]), stream.dtype)
    for layer in network.blocks:
        query, key, value = layer.project(stream, rotation)
        stream = layer.finish(stream, attend(query, key, value, None))
    output: torch.Tensor = network.output_norm(stream)
    return output


@torch.inference_mode()
@pytest.mark.parametrize("times", [1, 75], ids=["at once", "in parts"])
@pytest.mark.parametrize(("layers", "feature_layers"), [(1, ()), (2, ()), (1, (0,)), (2, (0, 1))])
def test_a_feature_draft_equals_its_network_over_the_whole_text(
    layers: int, feature_layers: tuple[int, ...], times: int
) -> None:
    target = tiny_target(max_position_embeddings=1024)
    draft = feature_draft(target, 0, layers, feature_layers)
    text, sampling = times * list(make_prompt(1)), SamplingSettings(1.0)
    read_anew(draft, target, text, sampling)
    assert target.features is not None
    states = draft.network.reduce(target.features)
    chooser = TokenChooser(sampling, target.vocabulary, target.device)
    tree, node = TokenTree(text[-1]), ROOT
    for _ in range(4):
        found = draft.expand(tree, node, 3)
        # Row r holds token r + 1 and the state before it; the network's last output is the state to go on with.
        output = whole_text_output(draft.network, draft.embedding(torch.tensor([text[1:]])), states[None])[0, -1:]
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
        with pytest.raises(ModelFileError, match=r"draft\.safetensors is corrupt .*`specgym distill`"):
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
            del tensors["layers.0.down.weight"]
        metadata = {"format": "specgym feature draft 2", "config": json.dumps(shape)}
        if change == "no config":
            del metadata["config"]
        if change == "bad config":
            metadata["config"] = "{"
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(ModelFileError, match=r"draft\.safetensors is corrupt"):
            load_network(path)

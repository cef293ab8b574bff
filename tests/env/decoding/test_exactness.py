"""The main promise: every controller and every draft gives the text of plain decoding."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from transformers import (
    DeepseekV2Config,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from specgym.controllers.controller import Controller
from specgym.controllers.registry import controller_names
from specgym.controllers.rules.phases import StaticController
from specgym.env.common.arrays import IntArray
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts import Draft
from specgym.env.models.target import TargetModel
from specgym.env.tree.parameters import TreeParameters
from specgym.env.tree.rounds import FinishReason, Request
from specgym.env.tree.sampling import GumbelNoise, SamplingSettings
from specgym.env.tree.tree import TokenTree
from tests.support.tiny_models import (
    DRAFT_KINDS,
    SHAPE,
    causal_draft,
    chain,
    generate,
    make_draft,
    make_prompt,
    sampling_settings,
    tiny_llama,
    tiny_target,
    tree_parameters,
)

SAMPLINGS = [SamplingSettings(), *(SamplingSettings(1.0, seed=seed) for seed in (0, 1, 2))]
FEW_TOKENS = 16  # a small vocabulary repeats itself, which prompt lookup needs
PROMPTS = [make_prompt(seed, 6 + seed % 7, FEW_TOKENS) for seed in range(40)]
NEW_TOKENS = 12
TREE = TreeParameters(base_depth=4, max_depth=6, min_branch=1, mid_branch=2, max_branch=3, deep_expand=0.3)


@st.composite
def targets(draw: st.DrawFn) -> TargetModel:
    """A random Llama: 1 to 3 layers, any grouping of heads, a vocabulary of 5 to 40, any tokens as ends."""
    kv_heads, group = draw(st.sampled_from([(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (4, 1)]))
    vocabulary = draw(st.integers(5, 40))
    model = tiny_llama(
        draw(st.integers(0, 10_000)),
        vocab_size=vocabulary,
        hidden_size=8 * kv_heads * group,
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=kv_heads * group,
        num_key_value_heads=kv_heads,
    )
    return TargetModel(model, frozenset(draw(st.sets(st.integers(0, vocabulary - 1), max_size=2))))


class Schedule:
    """A controller that repeats a list of parameters."""

    observes_draft = False

    def __init__(self, parameters: Sequence[TreeParameters]) -> None:
        self.parameters = parameters

    def reset(self) -> None:
        self.round = -1

    def act(self, observation: object) -> TreeParameters:
        self.round += 1
        return self.parameters[self.round % len(self.parameters)]


@settings(max_examples=200)
@given(
    target=targets(),
    kind=st.sampled_from(DRAFT_KINDS),
    sampling=sampling_settings(),
    parameters=st.lists(tree_parameters(), min_size=1, max_size=4),
    seed=st.integers(0, 10_000),
    length=st.integers(1, 12),
)
def test_any_trees_of_any_draft_on_any_target_give_the_text_of_plain_decoding(
    *,
    target: TargetModel,
    kind: str,
    sampling: SamplingSettings,
    parameters: list[TreeParameters],
    seed: int,
    length: int,
) -> None:
    draft = make_draft(kind, target, seed)
    request = Request(make_prompt(seed, length, target.vocabulary), 20, sampling)
    plain = generate(target, draft, request)
    tree = generate(target, draft, request, Schedule(parameters))
    assert tree.tokens == plain.tokens
    assert tree.finished is plain.finished
    event(f"some accepted: {tree.accepted > 0}")
    event(f"sources: {', '.join(sorted({each.source for each in parameters if each.speculates}))}")
    event(f"ended by itself: {tree.finished is FinishReason.END_OF_SEQUENCE}")


@functools.cache
def float32_target() -> TargetModel:
    return tiny_target(end_tokens=[2], dtype=torch.float32, vocab_size=FEW_TOKENS)


@functools.cache
def float32_draft(kind: str) -> Draft:
    return make_draft(kind, float32_target())


def texts(draft: Draft, sampling: SamplingSettings, controller: str | Controller) -> tuple[list[list[int]], int, int]:
    """The texts of all prompts, and how many tokens were drafted and accepted for them."""
    runs = [generate(float32_target(), draft, Request(each, NEW_TOKENS, sampling), controller) for each in PROMPTS]
    return [run.tokens for run in runs], sum(run.drafted for run in runs), sum(run.accepted for run in runs)


@functools.cache
def plain_texts(sampling: SamplingSettings) -> list[list[int]]:
    return texts(float32_draft("lookup"), sampling, "autoregressive")[0]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "seed 0", "seed 1", "seed 2"])
@pytest.mark.parametrize("kind", DRAFT_KINDS)
@pytest.mark.parametrize(
    "controller", [*controller_names(), "history:source=both", "dynamic_depth:source=both", "fixed_tree:source=lookup"]
)
def test_every_controller_with_every_draft_gives_the_text_of_plain_decoding(
    controller: str, kind: str, sampling: SamplingSettings
) -> None:
    found, drafted, accepted = texts(float32_draft(kind), sampling, controller)
    assert found == plain_texts(sampling)
    if controller != "autoregressive":
        assert 0 < accepted < drafted, "the test would be vacuous"


@pytest.mark.parametrize("sampling", SAMPLINGS[:2], ids=["greedy", "sampling"])
@pytest.mark.parametrize("kind", DRAFT_KINDS)
def test_sources_that_change_every_round_give_the_text_of_plain_decoding(kind: str, sampling: SamplingSettings) -> None:
    schedule = Schedule([dataclasses.replace(TREE, source=source) for source in ("both", "lookup", "model", "lookup")])
    found, drafted, accepted = texts(float32_draft(kind), sampling, schedule)
    assert found == plain_texts(sampling)
    assert 0 < accepted < drafted, "the test would be vacuous"


def test_the_texts_that_are_compared_differ_from_each_other() -> None:
    every = [tuple(text) for sampling in SAMPLINGS for text in plain_texts(sampling)]
    assert len(set(every)) > 0.75 * len(every)
    lengths = {len(text) for text in every}
    assert NEW_TOKENS in lengths
    assert min(lengths) < NEW_TOKENS, "some texts end by themselves"


class TestComparison:
    """The comparison above notices wrong engines."""

    @pytest.mark.parametrize("sampling", SAMPLINGS[:2], ids=["greedy", "sampling"])
    def test_accepting_other_tokens_than_the_targets_is_noticed(
        self, monkeypatch: pytest.MonkeyPatch, sampling: SamplingSettings
    ) -> None:
        def first_child(tree: TokenTree, choices: IntArray) -> IntArray:
            return np.arange(min(len(tree), 2))

        expected = plain_texts(sampling)
        monkeypatch.setattr(TokenTree, "accepted_path", first_child)
        assert texts(float32_draft("causal"), sampling, "fixed_tree")[0] != expected

    def test_noise_that_depends_on_more_than_the_position_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = plain_texts(SAMPLINGS[1])
        right, calls = GumbelNoise.row, iter(range(10**9))
        monkeypatch.setattr(GumbelNoise, "row", lambda noise, position: right(noise, position + next(calls) % 2))
        assert texts(float32_draft("causal"), SAMPLINGS[1], "fixed_tree")[0] != expected

    def test_a_tree_that_sees_its_siblings_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        expected, right = plain_texts(SAMPLINGS[0]), LiveDecoder._verify

        def sees_all(decoder: LiveDecoder, tree: TokenTree, *arguments: Any) -> IntArray:
            ancestors, tree.ancestors = tree.ancestors, np.tri(len(tree), dtype=bool)
            choices = right(decoder, tree, *arguments)
            tree.ancestors = ancestors
            return choices

        monkeypatch.setattr(LiveDecoder, "_verify", sees_all)
        assert texts(float32_draft("causal"), SAMPLINGS[0], "fixed_tree")[0] != expected


LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12}
FAMILIES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 8}),
    "gemma": (GemmaConfig, {"head_dim": 8, "num_key_value_heads": 1}),
    "gpt_neox": (GPTNeoXConfig, {"num_key_value_heads": 4}),
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "gptj": (GPTJConfig, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 8}),
    "deepseek_v2, values narrower than keys": (
        DeepseekV2Config,
        {"num_key_value_heads": 4, "first_k_dense_replace": 2, **LATENT},
    ),
}


@functools.cache
def family(name: str) -> TargetModel:
    """A tiny model of a family, in float64."""
    config, changes = FAMILIES[name]
    shape = {key: value for key, value in SHAPE.items() if not (key.startswith("num_") and "n_layer" in changes)}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**(shape | changes))).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))  # biases start at 0 and norms at 1, which hides mistakes
    return TargetModel(model, frozenset())


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_text_is_token_for_token_that_of_transformers(name: str) -> None:
    target = family(name)
    draft = causal_draft(target, 0.03)
    accepted, drafted, varied = 0, 0, set()
    for prompt in PROMPTS[:4]:
        ids = torch.tensor([prompt])
        with target.lent() as model:
            output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False)
        expected = output[0, len(prompt) :].tolist()
        request = Request(prompt, 30)
        assert generate(target, draft, request).tokens == expected
        tree = generate(target, draft, request, StaticController(TREE))
        assert tree.tokens == expected
        accepted, drafted, varied = accepted + tree.accepted, drafted + tree.drafted, varied | set(expected)
    assert 0 < accepted < drafted, "the test would be vacuous"
    assert len(varied) > 4, "the test would be vacuous"


@pytest.mark.parametrize("name", FAMILIES)
def test_sampled_text_is_that_of_plain_decoding_in_every_family(name: str) -> None:
    target = family(name)
    draft, accepted = causal_draft(target, 0.03), 0
    for seed, prompt in enumerate(PROMPTS[:4]):
        request = Request(prompt, 30, SamplingSettings(1.0, top_p=0.95, seed=seed))
        tree = generate(target, draft, request, StaticController(TREE))
        assert tree.tokens == generate(target, draft, request).tokens
        accepted += tree.accepted
    assert accepted > 0, "the test would be vacuous"


def test_a_seed_gives_one_text_and_another_seed_another() -> None:
    target = tiny_target()
    draft = causal_draft(target)

    def text(seed: int, controller: str) -> list[int]:
        return generate(target, draft, Request(PROMPTS[0], 30, SamplingSettings(1.0, seed=seed)), controller).tokens

    assert text(5, "fixed_tree") == text(5, "history") == text(5, "autoregressive")
    assert text(5, "fixed_tree") != text(6, "fixed_tree")


@pytest.mark.parametrize("sampling", SAMPLINGS[:2], ids=["greedy", "sampling"])
def test_a_draft_that_is_the_target_is_always_right(sampling: SamplingSettings) -> None:
    target = tiny_target()
    decoder = LiveDecoder(target, causal_draft(target, 0.0))
    decoder.start(Request(PROMPTS[0], 31, sampling))
    outcomes = [decoder.round(chain(5)) for _ in range(5)]
    assert [outcome.accepted for outcome in outcomes] == [5] * 5

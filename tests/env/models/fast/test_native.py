"""Compiled layers give transformers' numbers, and a row has the same bits alone and in a tree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from specgym.env.common.errors import PairError, ParameterError
from specgym.env.drafts import FeatureDraft
from specgym.env.drafts.feature import LeanDraft
from specgym.env.drafts.network import FeatureDraftConfig, FeatureDraftNetwork
from specgym.env.kernels.build import find_library
from specgym.env.models.cache import KeyValueBuffer, Rows
from specgym.env.models.fast import native, native_matrix
from specgym.env.models.fast.lean import lean_model
from specgym.env.models.fast.native_matrix import Linear, NativeMatrix, can_run, quantize_int8, record_native_time
from specgym.env.models.target import CachedModel, TargetModel
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings
from tests.support.tiny_models import SHAPE, generate

TEXT = [5, 6, 7, 8, 9, 3]
WIDE = SHAPE | {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"head_dim": 64}),
    "llama with biases": (LlamaForCausalLM, LlamaConfig, {"head_dim": 32, "attention_bias": True, "mlp_bias": True}),
    "llama without groups": (LlamaForCausalLM, LlamaConfig, {"head_dim": 96, "num_key_value_heads": 4}),
    "llama with one group": (LlamaForCausalLM, LlamaConfig, {"head_dim": 64, "num_key_value_heads": 1}),
    "qwen 2": (Qwen2ForCausalLM, Qwen2Config, {"head_dim": 128}),
    "qwen 3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 32}),
}

compiled = pytest.mark.skipif(not can_run(64), reason="this machine does not run or compile such functions")
in_both = pytest.mark.parametrize("eight_bits", [False, True], ids=["bfloat16", "int8"])


def build(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model_class, config_class, details = FAMILIES[family]
    model = model_class(config_class(**(WIDE | details))).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:  # they begin as ones and zeros
                weight.add_(0.3 * torch.randn_like(weight))
            elif "embed" not in name:
                weight.mul_(1.5)  # so that attention and gates have something to choose
    return model.to(torch.bfloat16)


def rounded(model: PreTrainedModel) -> PreTrainedModel:
    """Rounds the weights of a model's linear layers to what eight bits can hold."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                numbers, steps = quantize_int8(module.weight)
                module.weight.copy_(numbers * steps[:, None].double())
    return model


def visible(rows: int) -> np.ndarray:
    """Returns a tree of two branches: the parent of a row is two rows before it."""
    seen = np.eye(rows, dtype=bool)
    for row in range(2, rows):
        seen[row] |= seen[row - 2]
    return seen


@compiled
@torch.inference_mode()
@in_both
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_and_a_tree_get_the_logits_of_transformers(family: str, eight_bits: bool) -> None:
    model, exact = build(family), build(family).double()
    exact = rounded(exact) if eight_bits else exact
    branches = [[*TEXT, 4, 2], [*TEXT, 11, 12]]
    expected = [exact(torch.tensor([branch])).logits[0] for branch in branches]
    cached = CachedModel(model, eight_bits=eight_bits)
    lean = cached._lean
    assert lean is not None
    assert lean.head.native is not None, "the test would be vacuous"
    read = cached.extend_all(TEXT)
    tree = cached.extend_tree(np.array([4, 11, 2, 12]), len(TEXT) + np.array([0, 0, 1, 1]), visible(4))
    for branch, logits in enumerate(expected):
        # bfloat16 keeps 8 bits; transformers' own forward is as far off.
        error = torch.cat([read, tree[branch::2]]) - logits
        assert error.norm() < 0.08 * logits.norm()
    assert not torch.allclose(tree[0], tree[1], atol=0.01), "the test would be vacuous"


@compiled
@torch.inference_mode()
@in_both
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefix", [1, 15, 40])
def test_rows_of_a_tree_have_the_bits_of_plain_steps(family: str, prefix: int, eight_bits: bool) -> None:
    model = build(family)
    text, rows = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (2, 40))
    tree_model, plain_model = (CachedModel(model, eight_bits=eight_bits) for _ in range(2))
    for reader in (tree_model, plain_model):
        reader.extend_all(text[:prefix].tolist())
    depth = np.arange(21) // 2
    tree = tree_model.extend_tree(rows[:21], prefix + depth, visible(21))
    for row in range(0, 21, 2):  # the first branch, and the second as far as it goes after it
        assert torch.equal(plain_model.extend([int(rows[row])])[0], tree[row])


@compiled
@torch.inference_mode()
@in_both
@pytest.mark.parametrize("rows", [255, 256, 257, 600])
def test_a_text_that_is_read_in_parts_has_the_bits_of_one_that_is_read_step_by_step(
    rows: int, eight_bits: bool
) -> None:
    model = build("llama")
    text = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], rows).tolist()
    whole, stepwise = (CachedModel(model, eight_bits=eight_bits) for _ in range(2))
    assert torch.equal(whole.extend_all(text), torch.cat([stepwise.extend([token]) for token in text]))


@compiled
@torch.inference_mode()
@in_both
@pytest.mark.parametrize("outs", [16, 24, 100])
@pytest.mark.parametrize("features", [64, 96, 672])
def test_a_matrix_of_any_shape_gives_all_results_and_writes_no_others(
    features: int, outs: int, eight_bits: bool
) -> None:
    weight, bias = (torch.randn(outs, features) * (64 / features) ** 0.5).bfloat16(), torch.randn(outs).bfloat16()
    x = torch.randn(13, features).bfloat16()
    matrix, exact = NativeMatrix([Linear(weight, bias)], eight_bits=eight_bits), weight.double()
    if eight_bits:
        numbers, steps = quantize_int8(weight)
        exact = numbers * steps[:, None].double()
    expected = torch.nn.functional.linear(x.double(), exact, bias.double())
    torch.testing.assert_close(matrix(x).double(), expected, rtol=0.004, atol=0.002)  # rounded once, at the end


@compiled
@torch.inference_mode()
@in_both
@pytest.mark.parametrize("features", [64, 96, 672, 1536])
@pytest.mark.parametrize("rows", [1, 5, 7, 12, 16, 24, 25, 50])
def test_rows_that_take_turns_over_stretches_of_weights_have_the_bits_of_single_ones(
    features: int, rows: int, eight_bits: bool
) -> None:
    matrix = NativeMatrix([Linear(torch.randn(144, features).bfloat16(), None)], eight_bits=eight_bits)
    x = torch.randn(rows, features).bfloat16()
    assert torch.equal(matrix(x), torch.cat([matrix(row) for row in x.split(1)]))


@compiled
@torch.inference_mode()
@in_both
@pytest.mark.parametrize("part", ["self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "input_layernorm"])
def test_what_is_no_number_shows_in_the_logits(part: str, eight_bits: bool) -> None:
    model = build("llama")
    model.get_parameter(f"model.layers.0.{part}.weight").view(-1)[0] = torch.nan
    assert CachedModel(model, eight_bits=eight_bits).extend(TEXT).isnan().any()


@given(
    arrays(np.float32, (5, 32), elements=st.floats(-100, 100, width=16)),
    st.sampled_from([1.0, 1e-20, 1e30]),
)
def test_weights_in_eight_bits_are_off_by_half_a_step_at_most(weights: np.ndarray, size: float) -> None:
    exact = torch.from_numpy(weights) * size
    numbers, steps = quantize_int8(exact)
    assert numbers.dtype == torch.int8
    assert numbers.abs().max() <= 127
    error = (numbers * steps[:, None].double() - exact.double()).abs()
    assert (error <= 0.501 * steps[:, None].double()).all()
    largest = exact.double().abs().amax(dim=1)
    torch.testing.assert_close(127 * steps.double(), largest, rtol=1e-6, atol=1e-37)


@compiled
@torch.inference_mode()
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_an_input_that_is_no_number_makes_none_of_its_row_alone(wrong: float) -> None:
    x = torch.randn(7, 96).bfloat16()
    matrix = NativeMatrix([Linear(torch.randn(32, 96).bfloat16(), None)], eight_bits=True)
    expected = matrix(x)
    x[3, 70] = wrong
    found = matrix(x)
    assert found[3].isnan().all()
    others = [0, 1, 2, 4, 5, 6]
    assert torch.equal(found[others], expected[others])
    assert expected.isfinite().all()


@compiled
@torch.inference_mode()
def test_inputs_of_very_different_sizes_keep_what_bfloat16_has_of_them() -> None:
    x = torch.randn(9, 256) * torch.tensor([1.0, 1e-3, 1e3, 1e-30]).repeat_interleave(64)  # each with a step of its own
    weight = torch.randn(32, 256)
    for first in range(0, 256, 64):
        alone = x.clone()
        alone[:, :first], alone[:, first + 64 :] = 0, 0
        numbers, steps = quantize_int8(weight.bfloat16())
        expected = alone.bfloat16().double() @ (numbers * steps[:, None].double()).T
        found = NativeMatrix([Linear(weight.bfloat16(), None)], eight_bits=True)(alone.bfloat16())
        assert (found - expected).norm() < 0.004 * expected.norm()
    zeros = NativeMatrix([Linear(weight.bfloat16(), None)], eight_bits=True)(torch.zeros(2, 256).bfloat16())
    assert torch.equal(zeros, torch.zeros(2, 32).bfloat16())


@compiled
@torch.inference_mode()
def test_a_token_that_the_model_does_not_have_is_an_error() -> None:
    model = CachedModel(build("llama"))
    expected = model.extend_all(TEXT)
    model.cache.reset()
    for token in (-1, model.vocabulary):
        with pytest.raises(IndexError, match=f"Token {token} is not one of the {model.vocabulary}"):
            model.extend([5, token, 6])
        assert model.cache.length == 0
    assert torch.equal(model.extend_all(TEXT), expected)


@compiled
@torch.inference_mode()
@in_both
def test_a_feature_draft_fuses_embeddings_and_features_and_ranks_what_is_wanted(eight_bits: bool) -> None:
    torch.manual_seed(0)
    network = FeatureDraftNetwork(FeatureDraftConfig(96, 4, 2, 32, 160, 100)).eval()
    for norm in (network.token_norm, network.feature_norm, network.output_norm):
        norm.weight.add_(0.3 * torch.randn(96))
    table, features = torch.randn(50, 96).bfloat16(), torch.randn(9, 96).bfloat16()
    text, tree = np.arange(5), np.array([3, 40, 7, 8])
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        eight = eight_bits and dtype == torch.bfloat16
        draft, caches = LeanDraft(network.to(dtype), table.to(dtype), eight_bits=eight), [KeyValueBuffer()]
        assert (draft._native is not None) == (dtype == torch.bfloat16), "the test would be vacuous"
        rows = Rows(text, np.arange(5), None), Rows(tree, 5 + np.array([0, 0, 1, 1]), visible(4))
        read = draft.run(rows[0], caches, keep=1, features=features[:5].to(dtype))
        grown = draft.run(rows[1], caches, keep=3, features=features[5:].to(dtype))
        found.append([*read[:2], *grown[:2]])
    assert [tuple(part.shape) for part in found[0]] == [(5, 96), (1, 100), (4, 96), (3, 100)]
    for ours, exact in zip(*found, strict=True):
        assert (ours - exact).norm() < 0.05 * exact.norm()


@compiled
def test_the_times_of_the_functions_can_be_recorded() -> None:
    model = CachedModel(build("llama"))
    with torch.inference_mode(), record_native_time() as stretches:
        model.extend(TEXT)
    names = [stretch.name for stretch in stretches]
    assert sorted(names) == ["native::attention", "native::linear", "native::rest"]
    assert all(stretch.seconds > 0 for stretch in stretches)


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Gives an empty cache folder, and forgets the compiled functions."""
    monkeypatch.setenv("SPECGYM_HOME", str(tmp_path))
    caches = native_matrix._works, native_matrix._linear_function, native._forward_function, find_library
    for cache in caches:
        cache.cache_clear()
    yield tmp_path / "native"
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("lacks", ["a compiler", "a working compiler", "a folder", "the wish"])
def test_where_something_is_missing_layers_go_another_way(
    anew: Path, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    if lacks == "a compiler":
        monkeypatch.setenv("PATH", str(anew))
    elif lacks == "a working compiler":
        compiler = anew.parent / "c++"
        compiler.write_text("#!/bin/sh\nexit 1\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("PATH", f"{anew.parent}:/usr/bin:/bin")
    elif lacks == "a folder":
        anew.write_text("not a folder")
    else:
        monkeypatch.setenv("SPECGYM_NATIVE", "0")
    assert not can_run(64)
    model = build("llama")
    with pytest.raises(ParameterError, match="int8 needs compiled functions: a CPU with AVX2 or AVX-512 BF16"):
        CachedModel(model, eight_bits=True)
    lean = lean_model(model)
    assert lean is not None
    assert lean.head.native is None
    with torch.inference_mode():
        assert CachedModel(model).extend(TEXT).isfinite().all()


@compiled
def test_a_model_that_goes_by_transformers_has_no_weights_of_eight_bits() -> None:
    model = LlamaForCausalLM(LlamaConfig(**(WIDE | {"hidden_act": "gelu"}))).to(torch.bfloat16)
    with pytest.raises(PairError, match=r"int8 is for models built like Llama .* this one is a LlamaForCausalLM"):
        CachedModel(model, eight_bits=True)
    odd = LlamaForCausalLM(LlamaConfig(**(WIDE | {"head_dim": 16}))).to(torch.bfloat16)
    with pytest.raises(ParameterError, match="these have 16, and"):
        CachedModel(odd, eight_bits=True)


@compiled
@pytest.mark.parametrize("sampling", [SamplingSettings(), SamplingSettings(1.0, seed=3)])
@pytest.mark.parametrize("controller", ["dynamic_depth", "goodput"])
def test_texts_of_weights_in_eight_bits_are_their_own_models(controller: str, sampling: SamplingSettings) -> None:
    target = TargetModel(build("llama"), frozenset(), eight_bits=True)
    network = FeatureDraftNetwork(FeatureDraftConfig(96, 4, 2, 32, 160, SHAPE["vocab_size"])).bfloat16()
    draft = FeatureDraft(network, target.model.get_input_embeddings(), 128, eight_bits=True)
    request = Request(tuple(TEXT), 60, sampling)
    plain = generate(target, draft, request).tokens
    assert generate(target, draft, request, controller).tokens == plain
    assert len(set(plain)) > 3, "the test would be vacuous"

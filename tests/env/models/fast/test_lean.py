"""The lean forward gives the numbers of transformers' own for the families that it knows, and takes no others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from specgym.env.models.fast.lean import lean_model
from specgym.env.models.states import HiddenStates
from specgym.env.models.target import CachedModel, TargetModel
from tests.support.tiny_models import SHAPE, tiny_llama

TEXT = [5, 6, 7, 8, 9, 3]
LONG = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG["original_max_position_embeddings"] = 16
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama with biases": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama 3": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LONG}),
    "llama without groups": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4}),
    "llama with wide heads": (LlamaForCausalLM, LlamaConfig, {"head_dim": 12}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "qwen 2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen 3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8}),
}


def build(family: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model_class, config_class, details = FAMILIES[family]
    model = model_class(config_class(**(SHAPE | details | changes))).double().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:  # they begin as ones and zeros
                weight.add_(0.3 * torch.randn_like(weight))
    return model


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_and_a_tree_get_the_logits_of_transformers(family: str) -> None:
    model = build(family)
    branches = [[*TEXT, 4, 2], [*TEXT, 11, 12]]
    expected = [model(torch.tensor([branch])).logits[0] for branch in branches]
    assert lean_model(model) is not None, "the test would be vacuous"
    cached = CachedModel(model)
    read = cached.extend_all(TEXT)
    # transformers' norms are computed in float32, whatever the precision.
    torch.testing.assert_close(read, expected[0][: len(TEXT)], rtol=1e-4, atol=1e-4)
    visible = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]], bool)  # two branches side by side
    tree = cached.extend_tree(np.array([4, 11, 2, 12]), len(TEXT) + np.array([0, 0, 1, 1]), visible)
    for branch, logits in enumerate(expected):
        torch.testing.assert_close(tree[branch::2], logits[len(TEXT) :], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(tree[0], tree[1], atol=0.01), "the test would be vacuous"


@torch.inference_mode()
@pytest.mark.parametrize("layers", [(), (0,), (0, 1)])
def test_the_states_shown_are_those_that_transformers_passes_on(layers: tuple[int, ...]) -> None:
    model = build("llama")
    recorded = HiddenStates(model, layers)
    model(torch.tensor([TEXT]))
    expected = recorded.last
    recorded.close()
    target = TargetModel(model, frozenset())
    target.show_features(layers)
    target.extend_all(TEXT)
    assert expected is not None
    assert target.features is not None
    torch.testing.assert_close(target.features, expected[0], rtol=1e-4, atol=1e-4)
    target.show_features(None)
    assert target.features is None


def test_what_is_not_as_it_was_made_goes_by_transformers_own_forward() -> None:
    class Adapter(nn.Linear):
        pass

    adapted, hooked = tiny_llama(), tiny_llama()
    adapted.model.layers[1].mlp.up_proj = Adapter(32, 48, bias=False).double()
    hooked.model.layers[0].register_forward_hook(lambda *_: None)
    others = [adapted, hooked, tiny_llama(hidden_act="gelu")]
    others.append(tiny_llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}))
    assert [lean_model(model) for model in others] == [None] * len(others)
    assert lean_model(tiny_llama()) is not None, "the test would be vacuous"


def test_a_model_is_looked_at_anew_only_if_something_was_replaced() -> None:
    model = tiny_llama()
    first = lean_model(model)
    assert lean_model(model) is first
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.ones(48, 32, dtype=torch.float64))
    assert lean_model(model) is not first

"""Every change of a model object counts in its next text, however it was made."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from specgym.controllers.custom_generate import speculative_generate
from specgym.env.models.fast.lean import lean_model
from tests.support.model_objects import FLOAT, HALF, PROMPT, build, ours, text


def learn(model: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.3, fused=True)
    model(PROMPT, labels=PROMPT).loss.backward()
    optimizer.step()


def through_numpy(model: Any) -> None:
    model.model.layers[0].mlp.down_proj.weight.detach().view(torch.int32).numpy()[:] ^= -(2**31)  # signs


def transpose(model: Any) -> None:
    weight = model.model.layers[0].self_attn.o_proj.weight
    weight.data = weight.data.t()


def replace_parameter(model: Any) -> None:
    layer = model.model.layers[0].self_attn.v_proj
    layer.weight = nn.Parameter(-layer.weight.detach())


def assign_state(model: Any) -> None:
    state = {name: -tensor if "o_proj" in name else tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def set_attributes(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.scaling = 1.5


def swap_storage(model: Any) -> None:
    norm = model.model.norm.weight
    norm.data = torch.randn(norm.shape, generator=torch.Generator().manual_seed(0)).to(norm.dtype)


def reverse_layers(model: Any) -> None:
    layers = model.model.layers
    layers[0].mlp, layers[1].mlp = layers[1].mlp, layers[0].mlp


CHANGES: dict[str, Callable[[Any], Any]] = {
    "data": lambda model: model.model.layers[0].mlp.down_proj.weight.data.mul_(-1),
    "a single number": lambda model: model.lm_head.weight.data[8].fill_(9.0),
    "the embedding": lambda model: model.model.embed_tokens.weight.data.neg_(),
    "a fused optimizer": learn,
    "a NumPy view": through_numpy,
    "a transposed square": transpose,
    "another parameter": replace_parameter,
    "a loaded state": assign_state,
    "an attribute": set_attributes,
    "another storage": swap_storage,
    "the rotation": lambda model: model.model.rotary_emb.inv_freq.mul_(3),
    "an epsilon": lambda model: setattr(model.model.norm, "variance_epsilon", 1e3),
    "layers left out": lambda model: setattr(model.config, "num_hidden_layers", 1),
    "modules that changed places": reverse_layers,
}


@pytest.mark.parametrize("dtype", [FLOAT, HALF])
@pytest.mark.parametrize("kind", CHANGES)
def test_every_change_of_a_model_counts(kind: str, dtype: torch.dtype) -> None:
    model = build(dtype)
    before = ours(model)
    if dtype == HALF:
        assert not lean_model(model).packed  # type: ignore[union-attr]
    CHANGES[kind](model)
    assert ours(model) == ours(copy.deepcopy(model))
    if dtype == FLOAT:
        assert ours(model) == text(model)
    if kind != "an epsilon":
        assert ours(model) != before, "the test would be vacuous"


@pytest.mark.parametrize("dtype", [FLOAT, HALF])
def test_biases_that_change_count(dtype: torch.dtype) -> None:
    model = build(dtype, qwen=True)
    before = ours(model)
    assert lean_model(model) is not None
    model.model.layers[0].self_attn.q_proj.bias.data.mul_(-3)
    model.model.layers[1].self_attn.v_proj.bias.data.mul_(-3)
    assert ours(model) == ours(copy.deepcopy(model)) != before


def test_weights_that_change_within_a_text_count_from_then_on() -> None:
    model, other = build(), build()

    def change(model: Any) -> Callable[[Any], None]:
        return lambda tokens: model.lm_head.weight.data.mul_(-1)

    speculative = text(
        model, custom_generate=speculative_generate, controller="autoregressive", on_tokens=change(model)
    )
    assert speculative == text(other, custom_generate=plain_with(change(other)))


def plain_with(after: Callable[[Any], None]) -> Callable[..., torch.Tensor]:
    """A plain loop without a cache that calls `after` with every token."""

    def decode(model: Any, input_ids: torch.Tensor, generation_config: Any, **others: Any) -> torch.Tensor:
        while input_ids.shape[1] < generation_config.max_length:
            token = model(input_ids, use_cache=False).logits[:, -1:].argmax(-1)
            input_ids = torch.cat([input_ids, token], dim=1)
            after(token)
        return input_ids

    return decode

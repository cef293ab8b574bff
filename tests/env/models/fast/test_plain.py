"""A model object gives the text that its modules compute, whatever was done to them before or between two texts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from transformers import (
    AttentionInterface,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.llama import modeling_llama

from specgym.controllers.custom_generate import speculative_generate
from specgym.env.common.errors import PairError
from specgym.env.models.fast.lean import lean_model
from specgym.env.models.target import TargetModel

SHAPE: dict[str, Any] = {
    "vocab_size": 120,  # no multiple of 16
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,  # so that projections are square
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
}
PROMPT = torch.tensor([[5, 6, 7, 8, 5, 6, 7]])
FLOAT, HALF, CPU = torch.float32, torch.bfloat16, torch.device("cpu")


def build(dtype: torch.dtype = FLOAT, qwen: bool = False) -> Any:
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE)) if qwen else LlamaForCausalLM(LlamaConfig(**SHAPE))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "bias" in name:
                weight.normal_()
    return model.to(dtype).eval()


def text(model: PreTrainedModel, **options: Any) -> list[int]:
    settings = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    return model.generate(PROMPT, **(settings | options))[0].tolist()  # type: ignore[no-any-return, operator]


def ours(model: PreTrainedModel, controller: str = "fixed_tree") -> list[int]:
    return text(model, custom_generate=speculative_generate, controller=controller)


class Negated(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -super().forward(x)


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


class Adapter(nn.Module):
    """An adapter as PEFT makes them: around a layer, with its weight."""

    def __init__(self, base: Any, delta: nn.Module) -> None:
        super().__init__()
        self.base_layer, self.delta = base, delta

    @property
    def weight(self) -> Any:
        return self.base_layer.weight

    def forward(self, x: torch.Tensor) -> Any:
        return self.base_layer(x) + self.delta(x)


class Halved(torch.Tensor):
    """Weights of a class of their own, as quantised ones are: they count half."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **(kwargs or {}))
        if function is torch.Tensor.detach:
            return result.as_subclass(cls)
        return result / 2 if function is nn.functional.linear else result


class Doubling(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        return 2 * result if function is nn.functional.silu else result


def patched(name: str) -> Callable[[Any, Any], None]:
    def apply(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        module = model.get_submodule(name)
        own = module.forward
        module.forward = lambda *args, **kwargs: -own(*args, **kwargs)

    return apply


def patch_root(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = model.forward

    def negated(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        output.logits = -output.logits
        return output

    model.forward = negated


def patch_class(kind: type, name: str = "forward") -> Callable[[Any, Any], None]:
    def apply(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        own = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda *args, **kwargs: -own(*args, **kwargs))

    return apply


def patch_rotation(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin, *a: own(q, k, cos, -sin, *a))


def hook_all(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def negate(module: nn.Module, inputs: Any, output: Any) -> Any:
        return -output if isinstance(module, modeling_llama.LlamaMLP) else output

    handle = nn.modules.module.register_module_forward_hook(negate)
    monkeypatch.setattr(model, "undo", handle.remove, raising=False)


def negate_output(module: nn.Module, inputs: Any, output: Any) -> Any:
    return -output


def negate_input(module: nn.Module, inputs: Any) -> Any:
    return (-inputs[0],)


def replace(name: str, make: Callable[[Any], nn.Module]) -> Callable[[Any, Any], None]:
    def apply(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(1)
        old = model.get_submodule(name)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, make(old).to(old.weight.dtype))

    return apply


def subclass(old: Any) -> nn.Module:
    new = Negated(old.in_features, old.out_features, bias=False)
    new.load_state_dict(old.state_dict())
    return new


def halve(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.data.as_subclass(Halved), requires_grad=False)


def mix_precisions(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.model.norm.float()
    model.lm_head.float()


FOREIGN: dict[str, Callable[[Any, Any], Any]] = {
    **{
        f"forward of {name}": patched(name)
        for name in ("model.layers.0.mlp", "lm_head", "model.norm", "model.layers.0.self_attn.q_proj", "model.layers.1")
    },
    "forward of the embedding": patched("model.embed_tokens"),
    "forward of an activation": patched("model.layers.1.mlp.act_fn"),
    "forward of the model": patch_root,
    "forward of a class": patch_class(modeling_llama.LlamaMLP),
    "call of a class": patch_class(modeling_llama.LlamaRMSNorm, "__call__"),
    "function of a module": patch_rotation,
    "forward hook": lambda model, _: model.model.layers[1].mlp.register_forward_hook(negate_output),
    "forward pre-hook": lambda model, _: model.lm_head.register_forward_pre_hook(negate_input),
    "global hook": hook_all,
    "subclass": replace("model.layers.0.mlp.gate_proj", subclass),
    "adapter on the head": replace("lm_head", lambda old: Adapter(old, nn.Linear(64, 120, bias=False))),
    "adapter on the embedding": replace("model.embed_tokens", lambda old: Adapter(old, nn.Embedding(120, 64))),
    "parametrisation": lambda model, _: parametrize.register_parametrization(
        model.model.layers[0].mlp.down_proj, "weight", Doubled()
    ),
    "tensor subclass": halve,
}


@pytest.mark.parametrize("dtype", [FLOAT, HALF])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_foreign_to_a_model_counts(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(dtype)
    before = ours(model)
    assert lean_model(model) is not None, "the test would be vacuous"
    FOREIGN[kind](model, monkeypatch)
    try:
        right = text(model)
        assert lean_model(model) is None
        assert ours(model) == right != before
    finally:
        getattr(model, "undo", lambda: None)()


def test_offloaded_weights_are_fetched(tmp_path: Path) -> None:
    right = text(build())
    for model in (accelerate.cpu_offload(build(), CPU), accelerate.disk_offload(build(), tmp_path, CPU)):
        assert ours(model) == right


def test_gradient_checkpoints_do_not_matter() -> None:
    model = build()
    model.gradient_checkpointing_enable()
    assert ours(model.train()) == text(build())


def test_parts_in_another_precision_count() -> None:
    model = build(HALF)
    assert ours(model)
    mix_precisions(model, None)  # type: ignore[arg-type]
    assert lean_model(model) is None
    assert ours(model) == text(model)


@pytest.mark.parametrize("block", [lambda: torch.autocast("cpu", torch.bfloat16), Doubling], ids=["autocast", "mode"])
def test_a_block_that_changes_what_torch_computes_counts(block: Callable[[], Any]) -> None:
    model = build()
    before = ours(model)
    with block():
        assert lean_model(model) is None
        assert ours(model, "autoregressive") == text(model)
    assert lean_model(model) is not None
    assert ours(model) == before


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


def test_an_attention_function_of_the_users_own_is_refused() -> None:
    model = build()
    AttentionInterface.register("upside_down", lambda *args, **kwargs: None)
    model.set_attn_implementation("upside_down")
    with pytest.raises(PairError, match="attends by a function of its own \\('upside_down'\\)"):
        TargetModel(model)


@pytest.mark.parametrize("dtype", [FLOAT, HALF])
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("default", [torch.device("meta"), torch.float64, torch.bfloat16], ids=str)
def test_the_users_default_device_and_precision_do_not_matter(default: Any, sampled: bool, dtype: torch.dtype) -> None:
    model = build(dtype)
    options = {"custom_generate": speculative_generate, "draft": build(dtype), "do_sample": sampled, "seed": 1}
    right = text(model, **options)
    fresh, is_device = build(dtype), isinstance(default, torch.device)
    before = torch.get_default_device() if is_device else torch.get_default_dtype()
    change = torch.set_default_device if is_device else torch.set_default_dtype
    change(default)
    try:
        assert text(model, **options) == text(fresh, **options) == right
        assert default == (torch.get_default_device() if is_device else torch.get_default_dtype())
    finally:
        change(None if is_device else before)

"""A model object gives the text that its modules compute, whatever is foreign to its class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface
from transformers.models.llama import modeling_llama

from specgym.controllers.custom_generate import speculative_generate
from specgym.env.common.errors import PairError
from specgym.env.models.fast.lean import lean_model
from specgym.env.models.target import TargetModel
from tests.support.model_objects import CPU, FLOAT, HALF, build, ours, text


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

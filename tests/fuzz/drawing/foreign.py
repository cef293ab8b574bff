"""Adapters, patches and hooks: modules and functions of others on the way of a forward."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tests.fuzz.drawing.changes import CHANGES, Change, noise_for

_LINEARS = (nn.Linear, Conv1D)
_undone: list[Callable[[], object]] = []


class LowRank(nn.Module):
    """A linear layer or an embedding with an addition of low rank, as LoRA has it.

    Args:
        base: what is adapted.
        width: width of its output.
    """

    def __init__(self, base: nn.Module, width: int) -> None:
        super().__init__()
        self.base = base
        self.up = nn.Linear(width, 2, bias=False, dtype=base.weight.dtype)
        self.down = nn.Linear(2, width, bias=False, dtype=base.weight.dtype)

    def __getattr__(self, name: str) -> Any:
        """Looks like its base where code asks for the weight."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Adds to the base's output."""
        output = self.base(inputs)
        return output + 0.3 * self.down(self.up(output))


class OwnLinear(nn.Linear):
    """A subclass that computes something else with the same weights."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Doubles a part of the output."""
        output = super().forward(inputs)
        return torch.cat([output[..., :3] * 2, output[..., 3:]], dim=-1)


class OwnTensor(torch.Tensor):
    """A tensor that changes what operators make of it."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        """Scales the output of linear layers."""
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*arguments, **(options or {}))
        if function is torch.Tensor.detach:
            return result.as_subclass(cls)
        return result * 1.2 if function is nn.functional.linear else result


class Larger(nn.Module):
    """A parametrisation that makes weights larger."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns the larger weight."""
        return weight * 1.1


def _named(model: PreTrainedModel, random: Random, *kinds: type) -> tuple[str, Any]:
    """Draws a module of some classes, or any module with a forward of its own."""
    kinds = kinds or (nn.Module,)
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, kinds) and not isinstance(module, nn.ModuleList) and name
    ]
    return random.choice(found)


def _low_rank(model: PreTrainedModel, random: Random) -> None:
    name, base = _named(model, random, *_LINEARS)
    torch.manual_seed(random.randrange(2**32))
    model.set_submodule(name, LowRank(base, base.weight.shape[0 if isinstance(base, nn.Linear) else 1]))


def _low_rank_head(model: PreTrainedModel, random: Random) -> None:
    head = model.get_output_embeddings()
    torch.manual_seed(random.randrange(2**32))
    model.set_output_embeddings(LowRank(head, head.weight.shape[0]))


def _low_rank_embedding(model: PreTrainedModel, random: Random) -> None:
    embedding = model.get_input_embeddings()
    torch.manual_seed(random.randrange(2**32))
    model.set_input_embeddings(LowRank(embedding, embedding.weight.shape[1]))


def _own_class(model: PreTrainedModel, random: Random) -> None:
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    if linears:
        random.choice(linears).__class__ = OwnLinear


def _scaled(output: Any, factor: float) -> Any:
    if isinstance(output, torch.Tensor):
        return output * factor
    if isinstance(output, tuple):
        return (_scaled(output[0], factor), *output[1:])
    if hasattr(output, "logits"):
        output.logits = output.logits.roll(1, dims=-1)
    elif hasattr(output, "last_hidden_state"):
        output.last_hidden_state = output.last_hidden_state.roll(1, dims=-1)
    return output


def _patched(model: PreTrainedModel, random: Random) -> None:
    _, module = _named(model, random)
    original, factor = module.forward, random.choice((0.9, 1.3))
    module.forward = lambda *arguments, **options: _scaled(original(*arguments, **options), factor)


def _patched_model(model: PreTrainedModel, random: Random) -> None:
    original = model.forward

    def forward(*arguments: Any, **options: Any) -> Any:
        return _scaled(original(*arguments, **options), 1.0)

    model.forward = forward


def _hook(model: PreTrainedModel, random: Random) -> None:
    _, module = _named(model, random)
    factor = random.choice((0.9, 1.3))
    module.register_forward_hook(lambda module, inputs, output: _scaled(output, factor))


def _pre_hook(model: PreTrainedModel, random: Random) -> None:
    _, module = _named(model, random, *_LINEARS)
    module.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 1.2,))


def _parametrised(model: PreTrainedModel, random: Random) -> None:
    _, module = _named(model, random, *_LINEARS)
    if "weight" in module._parameters:
        parametrize.register_parametrization(module, "weight", Larger())


def _weight_norm(model: PreTrainedModel, random: Random) -> None:
    _, module = _named(model, random, *_LINEARS)
    if "weight" in module._parameters:
        parametrizations.weight_norm(module)
        module.parametrizations.weight.original0.data *= 1.2


def _own_tensor(model: PreTrainedModel, random: Random) -> None:
    _, module = _named(model, random, nn.Linear)
    if "weight" in module._parameters:
        module.weight = nn.Parameter(module.weight.detach().clone().as_subclass(OwnTensor))


def _new_bias(model: PreTrainedModel, random: Random) -> None:
    linears = [module for module in model.modules() if type(module) is nn.Linear and module.bias is None]
    if linears:
        linear = random.choice(linears)
        linear.bias = nn.Parameter(noise_for(linear.weight, random)[:, 0])


def _norms(model: PreTrainedModel) -> list[nn.Module]:
    return [module for module in model.modules() if "Norm" in type(module).__name__]


def _other_norm(model: PreTrainedModel, random: Random) -> None:
    names = [name for name, module in model.named_modules() if "Norm" in type(module).__name__]
    if names:
        name = random.choice(names)
        weight = getattr(model.get_submodule(name), "weight", None)  # weight norm's own module has none
        if weight is not None and weight.dim() == 1:
            model.set_submodule(name, nn.LayerNorm(weight.shape[0], dtype=weight.dtype))


def _setting(model: PreTrainedModel, random: Random) -> None:
    """Changes a number that a module has."""
    names = ("scaling", "variance_epsilon", "eps", "attention_scaling", "scale_attn", "embed_scale")
    found = [
        (module, name) for module in model.modules() for name in names if isinstance(vars(module).get(name), float)
    ]
    if found:
        module, name = random.choice(found)
        setattr(module, name, getattr(module, name) * 1.5 + (0.01 if "eps" in name else 0))


def _activation(model: PreTrainedModel, random: Random) -> None:
    """Replaces the activation of one layer, where it is a module."""
    found = [module for module in model.modules() if isinstance(getattr(module, "act_fn", None), nn.Module)]
    if found:
        random.choice(found).act_fn = random.choice((nn.ReLU, nn.GELU))()


def _buffer(model: PreTrainedModel, random: Random) -> None:
    """Changes a table of the rotary embedding, or another one."""
    buffers = [buffer for name, buffer in model.named_buffers() if buffer.is_floating_point() and buffer.dim() == 1]
    if buffers:
        for buffer in buffers:
            buffer.mul_(0.8)


def _original_weight(model: PreTrainedModel, random: Random) -> None:
    """Makes a weight an ordinary attribute, as adapters do that merge it before each forward."""
    _, module = _named(model, random, nn.Linear)
    if "weight" in module._parameters:
        weight = module.weight.detach()
        del module._parameters["weight"]
        module.weight = weight * 1.1


def _patched_class(model: PreTrainedModel, random: Random) -> None:
    """Patches the forward of a class, for all models, until `undo` is called."""
    kind: Any = type(_named(model, random)[1])
    if kind.forward is nn.Module.forward:
        return
    inherited, original, factor = "forward" not in vars(kind), kind.forward, random.choice((0.9, 1.3))
    kind.forward = lambda *arguments, **options: _scaled(original(*arguments, **options), factor)
    _undone.append(lambda: delattr(kind, "forward") if inherited else setattr(kind, "forward", original))


def _patched_operator(model: PreTrainedModel, random: Random) -> None:
    """Patches torch's linear operator, for all models, until `undo` is called."""
    original: Any = nn.functional.linear
    nn.functional.linear = lambda *arguments: original(*arguments) * 1.05
    _undone.append(lambda: setattr(nn.functional, "linear", original))


def _global_hook(model: PreTrainedModel, random: Random) -> None:
    """Hooks all modules of all models, until `undo` is called."""

    def change(module: nn.Module, inputs: Any, output: Any) -> Any:
        return _scaled(output, 1.1) if isinstance(module, nn.Linear) else None

    _undone.append(nn.modules.module.register_module_forward_hook(change).remove)


def undo() -> None:
    """Undoes what was done to classes, operators and all modules."""
    while _undone:
        _undone.pop()()


def _eager(model: PreTrainedModel, random: Random) -> None:
    model.set_attn_implementation("eager")


def _transposed(model: PreTrainedModel, random: Random) -> None:
    """Stores a weight in another order, with new numbers."""
    _, module = _named(model, random, nn.Linear)
    if "weight" in module._parameters:
        module.weight.data = (module.weight.detach() + noise_for(module.weight, random)).T.contiguous().T


def _training(model: PreTrainedModel, random: Random) -> None:
    random.choice([model, *model.modules()]).train()


FOREIGN: dict[str, Change] = {
    "low rank": _low_rank,
    "low rank on the head": _low_rank_head,
    "low rank on the embedding": _low_rank_embedding,
    "own class": _own_class,
    "patched forward": _patched,
    "patched model": _patched_model,
    "hook": _hook,
    "pre-hook": _pre_hook,
    "parametrised": _parametrised,
    "weight norm": _weight_norm,
    "own tensor": _own_tensor,
    "new bias": _new_bias,
    "other norm": _other_norm,
    "setting": _setting,
    "activation": _activation,
    "buffer": _buffer,
    "weight as attribute": _original_weight,
    "training mode": _training,
    "patched class": _patched_class,
    "patched operator": _patched_operator,
    "global hook": _global_hook,
    "eager attention": _eager,
    "transposed": _transposed,
}
"""adapters, patches and hooks, by name"""
CHANGES_AND_FOREIGN: dict[str, Change] = CHANGES | {f"then {name}": change for name, change in FOREIGN.items()}
"""what may happen to a model between two texts, by name"""

"""Changes of weights between two texts: by operators, optimisers, other tensors, and behind torch's back."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel

Change: TypeAlias = Callable[[PreTrainedModel, Random], None]
"""changes a model in place"""


def noise_for(weight: torch.Tensor, random: Random) -> torch.Tensor:
    """Returns noise of a weight's shape and precision, a small part of the weight's spread."""
    generator = torch.Generator().manual_seed(random.randrange(2**32))
    noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return random.choice((0.05, 0.2, 0.5)) * noise * weight.detach().std()


def _matrix(model: PreTrainedModel, random: Random) -> nn.Parameter:
    return random.choice([weight for weight in model.parameters() if weight.dim() == 2])


def _holder(model: PreTrainedModel, random: Random) -> nn.Module:
    """Draws a module that holds a matrix `weight`, of any kind."""
    weights = ((module, module._parameters.get("weight")) for module in model.modules())
    return random.choice([module for module, weight in weights if weight is not None and weight.dim() == 2])


def _add(model: PreTrainedModel, random: Random) -> None:
    weight = _matrix(model, random)
    with torch.no_grad():
        weight.add_(noise_for(weight, random))


def _add_to_data(model: PreTrainedModel, random: Random) -> None:
    weight = _matrix(model, random)
    weight.data += noise_for(weight, random)


def _copy_to_data(model: PreTrainedModel, random: Random) -> None:
    weight = _matrix(model, random)
    weight.data.copy_(weight.detach() + noise_for(weight, random))


def _other_data(model: PreTrainedModel, random: Random) -> None:
    weight = _matrix(model, random)
    weight.data = weight.detach() + noise_for(weight, random)


def _set(model: PreTrainedModel, random: Random) -> None:
    weight = _matrix(model, random)
    with torch.no_grad():
        weight.set_(weight.detach() + noise_for(weight, random))


def _numpy_view(model: PreTrainedModel, random: Random) -> None:
    weight = _matrix(model, random)
    if weight.dtype is not torch.bfloat16:  # which NumPy does not know
        weight.detach().numpy()[...] += noise_for(weight, random).numpy()


def _one_number(model: PreTrainedModel, random: Random) -> None:
    weight = _matrix(model, random)
    weight.data.view(-1)[random.randrange(weight.numel())] += 3


def _vector(model: PreTrainedModel, random: Random) -> None:
    weight = random.choice([weight for weight in model.parameters() if weight.dim() == 1] or [_matrix(model, random)])
    weight.data.mul_(1.2)


def _step(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> Change:
    def step(model: PreTrainedModel, random: Random) -> None:
        weights = list(model.parameters())
        optimiser = make(weights)
        for weight in weights:
            weight.grad = noise_for(weight, random).nan_to_num()
        optimiser.step()
        model.zero_grad()

    return step


def _load_state(model: PreTrainedModel, random: Random) -> None:
    state = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    weight = state[random.choice([name for name, weight in state.items() if weight.dim() == 2])]
    weight += noise_for(weight, random)
    model.load_state_dict(state, assign=random.random() < 0.5)


def _other_parameter(model: PreTrainedModel, random: Random) -> None:
    module = _holder(model, random)
    module.weight = nn.Parameter(module.weight.detach() + noise_for(module.weight, random))


def _swap_tensors(model: PreTrainedModel, random: Random) -> None:
    weight = _matrix(model, random)
    torch.utils.swap_tensors(weight, nn.Parameter(weight.detach() + noise_for(weight, random)))


def _swap_layers(model: PreTrainedModel, random: Random) -> None:
    """Swaps the weights of two modules of one shape."""
    one = _holder(model, random)
    alike = [each for each in model.modules() if type(each) is type(one) and each.weight.shape == one.weight.shape]
    other = random.choice(alike)
    one.weight, other.weight = other.weight, one.weight


def _other_module(model: PreTrainedModel, random: Random) -> None:
    linears = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    if not linears:
        return _other_parameter(model, random)
    name, linear = random.choice(linears)
    fresh = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None, dtype=linear.weight.dtype)
    fresh.load_state_dict(linear.state_dict())
    fresh.train(linear.training)
    fresh.weight.data += noise_for(linear.weight, random)
    return model.set_submodule(name, fresh)


CHANGES: dict[str, Change] = {
    "add": _add,
    "add to data": _add_to_data,
    "copy to data": _copy_to_data,
    "other data": _other_data,
    "set": _set,
    "numpy view": _numpy_view,
    "one number": _one_number,
    "vector": _vector,
    "step of SGD": _step(lambda weights: torch.optim.SGD(weights, lr=0.01)),
    "step of AdamW": _step(lambda weights: torch.optim.AdamW(weights, lr=0.01)),
    "step of fused AdamW": _step(lambda weights: torch.optim.AdamW(weights, lr=0.01, fused=True)),
    "step of fused SGD": _step(lambda weights: torch.optim.SGD(weights, lr=0.01, fused=True)),
    "load state": _load_state,
    "other parameter": _other_parameter,
    "swap tensors": _swap_tensors,
    "swap layers": _swap_layers,
    "other module": _other_module,
}
"""how weights change between texts, by name"""

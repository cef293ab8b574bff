"""Decides whether a transformers model computes what the lean forward computes, and notices when that changes.

The list is positive: exact types with functions of transformers and torch themselves, and nothing else. In doubt, the
model's own forward is called. A look at all modules takes milliseconds, so `PlainModel` remembers what was there, and
`holds` compares it in less than 100 microseconds.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from operator import is_, itemgetter
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as torch_modules
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from specgym.env.models.hub.context import has_window

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FAMILIES = frozenset({"Llama", "Mistral", "Qwen2", "Qwen3"})
# Rotary embeddings whose angle at a position does not depend on the length of the text.
_ROTATIONS = frozenset({"default", "linear", "llama3", "yarn"})
_DTYPES = frozenset({torch.bfloat16, torch.float16, torch.float32, torch.float64})
# By the last part of a module's name: the end of its class's name in the family, or a class of torch.
_NORMS = ("norm", "input_layernorm", "post_attention_layernorm", "q_norm", "k_norm")
_OWN = {"": "ForCausalLM", "model": "Model", "rotary_emb": "RotaryEmbedding", "self_attn": "Attention", "mlp": "MLP"}
_OWN |= dict.fromkeys(_NORMS, "RMSNorm")
_LINEARS = frozenset({"lm_head", *(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down"))})
_CALLS = ("forward", "__call__", "_call_impl", "_wrapped_call_impl", "__getattr__", "__getattribute__")
_WEIGHTS = ("weight", "bias")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_SETTINGS = frozenset(
    {"scaling", "head_dim", "layer_idx", "variance_epsilon", "attention_scaling", "rope_type", "max_norm"}
)
_TABLES = itemgetter("_modules", "_parameters")
_OPERATORS = ("linear", "silu", "embedding", "scaled_dot_product_attention")


def is_plain(model: PreTrainedModel) -> bool:
    """Whether a model is of a known family and as its class makes it: no adapters, hooks or other precisions."""
    family = type(model).__name__.removesuffix("ForCausalLM")
    home = sys.modules.get(f"transformers.models.{family.lower()}.modeling_{family.lower()}")
    if family not in _FAMILIES or home is None or type(model).__module__ != home.__name__ or _is_watched():
        return False
    modules = dict(model.named_modules(remove_duplicate=False))
    return (
        all(_has_place(home, family, name, module) and _is_untouched(module) for name, module in modules.items())
        and all(map(is_original, _functions(model, {type(module) for module in modules.values()})))
        and _is_one_shape(model, modules)
    )


def _has_place(home: Any, family: str, name: str, module: nn.Module) -> bool:
    """Whether a module has the class that its name stands for."""
    last = name.rpartition(".")[2]
    if last in _LINEARS:
        return type(module) is nn.Linear
    if last == "act_fn":
        return type(module) is type(transformers.activations.ACT2FN["silu"])
    if last in {"embed_tokens", "layers"}:
        return type(module) is (nn.Embedding if last == "embed_tokens" else nn.ModuleList)
    own = _OWN.get(last, "DecoderLayer" if last.isdecimal() else None)
    return own is not None and type(module) is vars(home).get(family + own)


def _is_untouched(module: nn.Module) -> bool:
    """Whether a module has no hooks and no functions of its own, and plain tensors only."""
    held = vars(module)
    tensors = chain(held["_parameters"].values(), held["_buffers"].values())
    return (
        not any(held[name] for name in _HOOKS)
        and not any(map(callable, held.values()))
        and held.keys().isdisjoint(_WEIGHTS)  # an ordinary attribute, for a weight that was taken out
        and all(type(tensor) in {nn.Parameter, nn.Buffer, Tensor} for tensor in tensors if tensor is not None)
    )


def _is_one_shape(model: Any, modules: dict[str, nn.Module]) -> bool:
    """Whether weights have one device and precision, and layers the same settings, so that attention sees all."""
    decoder, config, weights = model.model, model.config, list(model.parameters())
    attentions = [layer.self_attn for layer in decoder.layers]
    norms = [module for name, module in modules.items() if name.endswith("norm")]
    kinds = {(weight.dtype, weight.device, weight.layout) for weight in weights}
    return (
        len(kinds) == 1
        and weights[0].dtype in _DTYPES
        and weights[0].device.type != "meta"
        and all(weight.is_contiguous() for weight in weights)
        and [attention.layer_idx for attention in attentions] == list(range(config.num_hidden_layers))
        and len({(attention.scaling, attention.head_dim) for attention in attentions}) == 1
        and len({norm.variance_epsilon for norm in norms}) == 1
        and decoder.embed_tokens.max_norm is None
        and model.lm_head.bias is None
        and decoder.rotary_emb.rope_type in _ROTATIONS
        and not has_window(config)
    )


def _functions(model: PreTrainedModel, classes: Iterable[type]) -> list[object]:
    """Returns the functions that a forward of the model may call."""
    helpers = [value for value in vars(sys.modules[type(model).__module__]).values() if isinstance(value, FunctionType)]
    operators = [getattr(functional, name) for name in _OPERATORS]
    return [attention_of(model), *operators, *helpers, *(getattr(kind, name) for kind in classes for name in _CALLS)]


def attention_of(model: PreTrainedModel) -> object:
    """Returns the function by which a model attends, as far as it is registered in transformers; None if it is not."""
    return transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS.get(model.config._attn_implementation)


@functools.cache
def _folders() -> tuple[str, ...]:
    return tuple(f"{Path(str(library.__file__)).parent}/" for library in (torch, transformers))


def is_original(function: Any) -> bool:
    """Whether a function and those that it wraps are parts of torch or transformers, or have no Python code."""
    while function is not None:
        if isinstance(function, FunctionType) and not function.__code__.co_filename.startswith(_folders()):
            return False
        function = getattr(function, "__wrapped__", None)
    return True


def _is_watched() -> bool:
    """Whether something outside of the model changes or watches what it computes."""
    return bool(
        torch_modules._global_forward_hooks
        or torch_modules._global_forward_pre_hooks
        or torch._C._is_any_autocast_enabled()
        or torch._C._len_torch_dispatch_stack()
        or (torch._C._len_torch_function_stack() and {*map(type, _function_modes())} != {DeviceContext})
    )


def _function_modes() -> list[object]:
    modes: list[object] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return modes


class PlainModel:
    """Remembers the parts of a plain model. It holds no reference to the model itself.

    Args:
        model: a model for which `is_plain` holds.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        modules = list(model.modules())
        self._modules, self._dicts = modules[1:], [vars(module) for module in modules]
        self._hooks = [held[name] for held in self._dicts for name in _HOOKS]
        self._tables = [*map(_TABLES, self._dicts)]
        self._children = _Entries([children for children, _ in self._tables])
        self._weights = _Entries([weights for _, weights in self._tables])
        self._settings = _Entries(self._dicts, _SETTINGS)
        self._tensors = [weight for weight in self._weights.values if weight is not None]  # a linear layer has no bias
        self._addresses = [*map(Tensor.data_ptr, self._tensors)]
        # A transposed square matrix has the same address.
        self._squares = [weight for weight in self._tensors if weight.ndim == 2 and len(set(weight.shape)) == 1]
        self._buffers = _Entries([held["_buffers"] for held in self._dicts])
        self._kept = [buffer.clone() for buffer in model.buffers()]
        self._parents = [children for children, _ in self._tables if children]
        self._kinds, self._sizes, self._config = [*map(type, self._modules)], self._counts(), _config_of(model)
        self._classes = [type(model), *set(self._kinds)]
        self._functions = _functions(model, self._classes)

    def holds(self, model: PreTrainedModel) -> bool:
        """Whether the model still is what it was, and nothing outside of it changes what it computes."""
        with contextlib.suppress(RuntimeError):  # from the comparison of tables that were replaced
            return (
                not _is_watched()
                and type(model) is self._classes[0]
                and vars(model) is self._dicts[0]
                and self._kinds == [*map(type, self._modules)]
                and self._sizes == self._counts()
                and self._tables == [*map(_TABLES, self._dicts)]
                and not any(self._hooks)
                and self._children.hold()
                and self._weights.hold()
                and self._addresses == [*map(Tensor.data_ptr, self._tensors)]
                and all(map(Tensor.is_contiguous, self._squares))
                and self._settings.hold()
                and self._config == _config_of(model)
                and self._functions == _functions(model, self._classes)
                and self._buffers.hold()
                and all(map(torch.equal, self._buffers.values, self._kept))
            )
        return False

    def _counts(self) -> list[int]:
        return [*map(len, self._dicts), *map(len, self._parents)]


class _Entries:
    """Entries of many tables, to see whether the same objects are still there.

    Args:
        tables: the tables.
        names: names of the entries; all if None.
    """

    def __init__(self, tables: Sequence[dict[str, Any]], names: Collection[str] | None = None) -> None:
        held = [(table, name) for table in tables for name in (table if names is None else names & table.keys())]
        self.tables, self._names = [table for table, _ in held], [name for _, name in held]
        self.values: list[Any] = [*map(dict.get, self.tables, self._names)]

    def hold(self) -> bool:
        """Whether all entries are the same objects as before."""
        return all(map(is_, self.values, map(dict.get, self.tables, self._names)))


def _config_of(model: PreTrainedModel) -> tuple[object, ...]:
    """Returns the settings that a forward reads in the configuration."""
    config = model.config
    return config._attn_implementation, config.num_hidden_layers, getattr(config, "sliding_window", None)

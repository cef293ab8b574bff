"""Decoder layers as one call of a compiled function, where the machine can compile it and run it.

A plain step of a small model reads its weights once, and could take as long as that. Through a library it takes two to
three times as long: every operator begins and ends its own work on all threads, and kernels for a single row do not
read as fast as the memory gives. `native.cpp` does all layers in one piece, in bfloat16 on CPUs with AVX-512 BF16, or
with AVX2, which has no bfloat16: there weights are widened on the way from memory.

Where that is not to be had (see `env.compiled`), layers go the library's way (see `env.models.layer`).
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, Structure, c_double, c_float, c_int64, c_void_p
from pathlib import Path
from typing import NamedTuple

import torch

from env.compiled import find_library
from env.models.cache import KeyValueBuffer

__all__ = ["LayerShape", "NativeLayer", "NativeMatrix", "NativeNorm", "NativeStack", "Stretch", "can_run", "watched"]

_SOURCE = Path(__file__).with_name("native.cpp")
_LANES = 16  # results in a block of weights
_WIDTHS = 2 * _LANES  # that features are multiples of
_DIMS = (32, 64, 96, 128)  # of heads that attention is written for


class _Matrix(Structure):
    _fields_ = (("pairs", c_void_p), ("bias", c_void_p), ("features", c_int64), ("outs", c_int64))


class _Layer(Structure):
    _fields_ = (
        *((name, _Matrix) for name in ("joint", "output", "gate_up", "down")),
        *((name, c_void_p) for name in ("attention_norm", "feed_forward_norm", "query_norm", "key_norm")),
        *((name, c_int64) for name in ("heads", "kv_heads", "dim")),
        *((name, c_float) for name in ("epsilon", "scaling")),
    )


class _Work(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("stream", "results", "keys", "values", "cos", "sin", "mask")),
        *((name, c_int64) for name in ("layers", "rows", "start", "capacity", "threads")),
        ("seconds", c_double * 3),
    )


class Stretch(NamedTuple):
    """A piece of work of a compiled function."""

    name: str
    """``"native::linear"``, ``"native::attention"`` or ``"native::rest"``"""
    began: float
    """when the function was called, by the clock of `time.perf_counter` [s]"""
    seconds: float


_PARTS = ("native::linear", "native::attention", "native::rest")  # as in `Work::seconds`
_watching: list[list[Stretch]] = []


@contextmanager
def watched() -> Iterator[list[Stretch]]:
    """Gives a list that is filled with what compiled functions do meanwhile."""
    found: list[Stretch] = []
    _watching.append(found)
    try:
        yield found
    finally:
        _watching.pop()


def can_run(dim: int, *widths: int) -> bool:
    """Whether this machine has the compiled functions, and they do layers of such a shape.

    Args:
        dim: width of a head.
        widths: of the inputs of linear layers.
    """
    return dim in _DIMS and all(width % _WIDTHS == 0 for width in widths) and _works()


class NativeMatrix:
    """Weights of linear layers that read the same input, in the order in which they are read.

    Args:
        weight: `bfloat16[outs, features]`; `features` a multiple of 32.
        bias: `[outs]`, if there is one.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.outs, features = weight.shape
        if missing := -self.outs % _LANES:
            weight = torch.nn.functional.pad(weight, (0, 0, 0, missing))
            bias = None if bias is None else torch.nn.functional.pad(bias, (0, missing))
        self._pairs = weight.view(-1, _LANES, features // 2, 2).transpose(1, 2).contiguous()
        self._bias = bias
        self.struct = _Matrix(self._pairs.data_ptr(), _address(self._bias), features, self.outs)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`bfloat16[rows, features]` to `[rows, outs]`."""
        x, began = x.contiguous(), time.perf_counter()
        result = torch.empty((len(x), self.outs), dtype=x.dtype)
        _functions().specgym_linear(self.struct, x.data_ptr(), result.data_ptr(), len(x), torch.get_num_threads())
        _tell(_PARTS[0], began)
        return result


class NativeNorm:
    """A root mean square norm.

    Args:
        weight: `bfloat16[width]`; `width` a multiple of 32.
        epsilon: added to the mean square.
    """

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        self._weight, self._epsilon = weight.contiguous(), epsilon

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`bfloat16[rows, width]`."""
        x, began = x.contiguous(), time.perf_counter()
        result = torch.empty_like(x)
        addresses = x.data_ptr(), self._weight.data_ptr()
        _functions().specgym_norm(*addresses, self._epsilon, *x.shape, result.data_ptr())
        _tell(_PARTS[2], began)
        return result


class LayerShape(NamedTuple):
    """What a decoder layer is besides its weights; see `env.models.lean.LeanLayer`."""

    heads: int
    kv_heads: int
    dim: int
    epsilon: float
    scaling: float


class NativeLayer:
    """The weights of a decoder layer, as compiled functions read them.

    Args:
        norms: weights of the norms: before attention, before the feed-forward part, and maybe of queries and of keys.
        parts: query, key and value; output; gate and up; down.
        shape: the rest.
    """

    def __init__(self, norms: Sequence[torch.Tensor], parts: Sequence[NativeMatrix], shape: LayerShape) -> None:
        self._norms, self._parts = [norm.contiguous() for norm in norms], parts  # the structure points into them
        addresses = [_address(norm) for norm in self._norms] + [None] * (4 - len(norms))
        self.struct = _Layer(*(part.struct for part in parts), *addresses, *shape)


class NativeStack:
    """Decoder layers, one after the other, as `env.models.layer.decoder_layer` computes each.

    Args:
        layers: of one shape.
    """

    def __init__(self, layers: Sequence[NativeLayer]) -> None:
        self._layers = layers
        self._structs = (POINTER(_Layer) * len(layers))(*(ctypes.pointer(layer.struct) for layer in layers))

    def __call__(
        self,
        stream: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        buffers: Sequence[KeyValueBuffer],
        shown: Sequence[int],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The stream after all layers, and after each of those in `shown`.

        Args:
            stream: `[rows, hidden]`.
            turn: cosines `[rows, dim]` and sines `[rows, dim / 2]`.
            mask: additive, `[1, 1, rows, columns]`; None where each row sees all before it.
            buffers: of the layers; the rows are already counted in.
            shown: numbers of layers, ascending.
        """
        stream, began = stream.contiguous(), time.perf_counter()
        spare, rows, count = torch.empty((2, *stream.shape), dtype=stream.dtype), len(stream), len(self._layers)
        results = [torch.empty_like(stream) if number in shown else spare[number % 2] for number in range(count)]
        tables = (results, [buffer.keys for buffer in buffers], [buffer.values for buffer in buffers])
        addresses = [(c_void_p * count)(*map(_address, table)) for table in tables]
        first, pointers = buffers[0], (ctypes.cast(table, c_void_p) for table in addresses)
        sizes = (count, rows, first.length - rows, first.keys.shape[2], torch.get_num_threads())
        work = _Work(stream.data_ptr(), *pointers, *map(_address, (*turn, mask)), *sizes)
        _functions().specgym_layers(self._structs, work)
        for found in _watching:
            found += [Stretch(*part) for part in zip(_PARTS, [began] * len(_PARTS), work.seconds, strict=True)]
        return results[-1], [results[number] for number in shown]


def _tell(part: str, began: float) -> None:
    """Tells whoever watches what a call that is over was."""
    for found in _watching:
        found.append(Stretch(part, began, time.perf_counter() - began))


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def _works() -> bool:
    """Whether the functions are there and multiply as torch does, tried on a small layer."""
    if find_library(_SOURCE) is None:
        return False
    weight = torch.linspace(-1, 1, 24 * 64).view(24, 64).to(torch.bfloat16)
    x = torch.linspace(-1, 1, 7 * 64).view(7, 64).to(torch.bfloat16)
    found = NativeMatrix(weight, None)(x)
    return torch.allclose(found.float(), x.float() @ weight.float().T, rtol=0.02, atol=0.02)


@functools.cache
def _functions() -> ctypes.CDLL:
    library = find_library(_SOURCE)
    assert library is not None, "asked for before `can_run`"
    library.specgym_linear.argtypes = [POINTER(_Matrix), c_void_p, c_void_p, c_int64, c_int64]
    library.specgym_norm.argtypes = [c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p]
    library.specgym_layers.argtypes = [POINTER(POINTER(_Layer)), POINTER(_Work)]
    for function in (library.specgym_linear, library.specgym_norm, library.specgym_layers):
        function.restype = None
    return library

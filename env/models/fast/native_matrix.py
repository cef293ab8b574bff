"""Linear layers by a compiled function, with weights in bfloat16 or in eight bits; see `native`."""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, Structure, c_int64, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specgym.env.kernels.build import find_library

_SOURCE = Path(__file__).with_name("native.cpp")
BLOCK = 16
"""results in a block of weights"""
_WIDTHS = 2 * BLOCK  # numbers of features are multiples of this
_LARGEST = 127  # of eight bits, for both signs
_DIMS = (32, 64, 96, 128)  # widths of heads that attention supports


class MatrixStruct(Structure):
    """`Matrix` of `native.cpp`."""

    _fields_ = (
        *((name, c_void_p) for name in ("pairs", "places", "bias", "steps")),
        ("features", c_int64),
        ("outs", c_int64),
    )


class NativeTime(NamedTuple):
    """Time that one part of a compiled function took."""

    name: str
    """``"native::linear"``, ``"native::attention"`` or ``"native::rest"``"""
    began: float
    """when the function was called, on the clock of `time.perf_counter` [s]"""
    seconds: float


PARTS = ("native::linear", "native::attention", "native::rest")
"""names of the parts of a compiled function, in the order of `Work::seconds`"""

_recordings: list[list[NativeTime]] = []


@contextmanager
def record_native_time() -> Iterator[list[NativeTime]]:
    """Gives a list to which all compiled functions add their times, up to the end of the block."""
    times: list[NativeTime] = []
    _recordings.append(times)
    try:
        yield times
    finally:
        _recordings.pop()


def add_native_times(began: float, seconds: Sequence[float]) -> None:
    """Adds the times of the first parts of a function [s] to all recordings."""
    for times in _recordings:
        times += [NativeTime(name, began, part) for name, part in zip(PARTS, seconds, strict=False)]


def can_run(dim: int, *widths: int, eight_bits: bool = False) -> bool:
    """Whether this machine has the compiled functions, and whether they support layers of such a shape.

    Args:
        dim: width of a head.
        widths: widths of the inputs of linear layers.
        eight_bits: whether the weights of linear layers have eight bits.
    """
    return dim in _DIMS and all(width % _WIDTHS == 0 for width in widths) and _works(eight_bits)


class Linear(NamedTuple):
    """The weight of a linear layer, `[outs, features]`, and its bias, `[outs]`."""

    weight: Tensor
    bias: Tensor | None


def join_linears(layers: Sequence[Linear]) -> Linear:
    """Joins layers that read the same input into one, whose results stand side by side. Raises as `join_biases`."""
    if len(layers) == 1:
        return layers[0]
    return Linear(torch.cat([layer.weight for layer in layers]), join_biases(layers))


def join_biases(layers: Sequence[Linear]) -> Tensor | None:
    """Joins the biases of layers, if they have any.

    Raises:
        ValueError: some layers have a bias and some have none.
    """
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if len(biases) not in {0, len(layers)}:
        raise ValueError("Expected a bias in all layers or in none.")
    return torch.cat(biases) if biases else None


class NativeMatrix:
    """Weights of linear layers that read the same input, in the order in which compiled functions read them.

    Args:
        layers: of bfloat16; `features` is a multiple of 32.
        eight_bits: whether weights are rounded to eight bits, see `quantize_int8`.
        in_place: whether the weights stay where they are, so that later changes have an effect. Then the results of a
            layer are a multiple of 16, unless it is alone and has no bias.
    """

    def __init__(self, layers: Sequence[Linear], *, eight_bits: bool = False, in_place: bool = False) -> None:
        self.outs, features = sum(len(layer.weight) for layer in layers), layers[0].weight.shape[1]
        if in_place:
            self._layers, places = layers, [place for layer in layers for place in _places(layer)]
            self._places = (c_void_p * len(places))(*places)
            self.struct = MatrixStruct(None, ctypes.addressof(self._places), None, None, features, self.outs)
            return
        if any(len(layer.weight) % BLOCK for layer in layers):
            weight, bias = join_linears(layers)
            missing = -self.outs % BLOCK
            weight = torch.nn.functional.pad(weight, (0, 0, 0, missing))
            layers = [Linear(weight, None if bias is None else torch.nn.functional.pad(bias, (0, missing)))]
        blocks = [len(layer.weight) // BLOCK for layer in layers]
        dtype = torch.int8 if eight_bits else layers[0].weight.dtype
        # [outs, features] to [outs / 16, features / 2, 16, 2]: a register holds two features of 16 results.
        self._pairs = torch.empty((sum(blocks), features // 2, BLOCK, 2), dtype=dtype, device="cpu")
        steps: list[Tensor] = []
        for layer, pairs in zip(layers, torch.split(self._pairs, blocks), strict=True):
            numbers = layer.weight
            if eight_bits:
                numbers, step = quantize_int8(numbers)
                steps.append(step)
            pairs.copy_(numbers.view(-1, BLOCK, features // 2, 2).transpose(1, 2))
        self._steps = torch.cat(steps) if steps else None
        self._bias = join_biases(layers)
        addresses = address_of(self._pairs), None, address_of(self._bias), address_of(self._steps)
        self.struct = MatrixStruct(*addresses, features, self.outs)

    def __call__(self, x: Tensor) -> Tensor:
        """Multiplies `bfloat16[rows, features]` to `[rows, outs]`."""
        x, began = x.contiguous(), time.perf_counter()
        result = torch.empty((len(x), self.outs), dtype=torch.bfloat16, device="cpu")
        _linear_function()(self.struct, x.data_ptr(), result.data_ptr(), len(x), torch.get_num_threads())
        add_native_times(began, [time.perf_counter() - began])
        return result


def _places(layer: Linear) -> Iterator[int | None]:
    """Yields the address, the address of the biases, and the number of rows, for each 16 rows of a weight."""
    for first in range(0, len(layer.weight), BLOCK):
        yield layer.weight.data_ptr() + layer.weight.element_size() * layer.weight.shape[1] * first
        yield None if layer.bias is None else layer.bias.data_ptr() + layer.bias.element_size() * first
        yield min(BLOCK, len(layer.weight) - first)


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds weights to whole numbers from -127 to 127. Each result has a step: its largest weight divided by 127.

    Args:
        weight: `[outs, features]`.

    Returns:
        `int8[outs, features]` and steps, `float32[outs]`.
    """
    exact = weight.float()
    steps = exact.abs().amax(dim=1) / _LARGEST
    numbers = (exact / steps.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round_().to(torch.int8)
    return numbers, steps


def address_of(tensor: Tensor | None) -> int | None:
    """Returns the address of a tensor's numbers; None for None."""
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def _works(eight_bits: bool) -> bool:
    """Whether the functions are there and multiply as torch does, tried on a small layer."""
    if find_library(_SOURCE) is None:
        return False
    weight = torch.linspace(-1, 1, 24 * 64, device="cpu").view(24, 64).to(torch.bfloat16)
    x = torch.linspace(-1, 1, 7 * 64, device="cpu").view(7, 64).to(torch.bfloat16)
    result, exact = NativeMatrix([Linear(weight, None)], eight_bits=eight_bits)(x), weight.float()
    if eight_bits:
        numbers, steps = quantize_int8(weight)
        exact = numbers * steps[:, None]
    return torch.allclose(result.float(), x.float() @ exact.T, rtol=0.02, atol=0.02)


@functools.cache
def _linear_function() -> Callable[..., Any]:
    return compiled("specgym_linear", None, POINTER(MatrixStruct), c_void_p, c_void_p, c_int64, c_int64)


def compiled(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """Returns a compiled function of these types, which must be there, see `can_run`."""
    library = find_library(_SOURCE)
    assert library is not None, "call `can_run` first"
    return ctypes.CFUNCTYPE(result, *arguments)((name, library))

"""A model's forward as one call of a compiled function, where the machine can compile it and run it.

A plain step of a small model reads its weights once, and could take as long as that. Through a library it takes two to
three times as long: every operator begins and ends its own work on all threads, and kernels for a single row do not
read as fast as the memory gives. `native.cpp` does all in one piece, from tokens to logits, in bfloat16 on CPUs with
AVX-512 BF16, or with AVX2, which has no bfloat16: there weights are widened on the way from memory.

Without a compiler or such a CPU (see `specgym.env.kernels.build`), models use `specgym.env.models.fast.layer`.
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

import numpy as np
import torch

from specgym.env.common.arrays import BoolArray, IntArray
from specgym.env.kernels.build import find_library
from specgym.env.models.cache import KeyValueBuffer

_SOURCE = Path(__file__).with_name("native.cpp")
_LANES = 16  # results in a block of weights
_WIDTHS = 2 * _LANES  # that features are multiples of
_LARGEST = 127  # of eight bits, with either sign
_DIMS = (32, 64, 96, 128)  # of heads that attention is written for


class _Matrix(Structure):
    _fields_ = (*((name, c_void_p) for name in ("pairs", "bias", "steps")), ("features", c_int64), ("outs", c_int64))


class _Layer(Structure):
    _fields_ = (
        *((name, _Matrix) for name in ("joint", "output", "gate_up", "down")),
        *((name, c_void_p) for name in ("attention_norm", "feed_forward_norm", "query_norm", "key_norm")),
        *((name, c_int64) for name in ("heads", "kv_heads", "dim")),
        *((name, c_float) for name in ("epsilon", "scaling")),
    )


class _Frame(Structure):
    _fields_ = (
        ("table", c_void_p),
        ("vocabulary", c_int64),
        *((name, c_void_p) for name in ("token_norm", "feature_norm")),
        ("fuse", _Matrix),
        ("norm", c_void_p),
        ("head", _Matrix),
        ("epsilon", c_float),
    )


class _Work(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("tokens", "positions", "features", "stream", "results", "last", "logits")),
        *((name, c_void_p) for name in ("keys", "values", "cos", "sin", "visible")),
        *((name, c_int64) for name in ("columns", "layers", "rows", "kept", "start", "capacity", "threads")),
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


def can_run(dim: int, *widths: int, eight_bits: bool = False) -> bool:
    """Whether this machine has the compiled functions, and they do layers of such a shape.

    Args:
        dim: width of a head.
        widths: of the inputs of linear layers.
        eight_bits: whether their weights are of eight bits.
    """
    return dim in _DIMS and all(width % _WIDTHS == 0 for width in widths) and _works(eight_bits)


class NativeMatrix:
    """Weights of linear layers that read the same input, in the order in which they are read.

    Args:
        weight: `bfloat16[outs, features]`; `features` a multiple of 32.
        bias: `[outs]`, if there is one.
        eight_bits: whether weights are rounded to whole numbers of eight bits, see `in_eight_bits`.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, *, eight_bits: bool = False) -> None:
        self.outs, features = weight.shape
        if missing := -self.outs % _LANES:
            weight = torch.nn.functional.pad(weight, (0, 0, 0, missing))
            bias = None if bias is None else torch.nn.functional.pad(bias, (0, missing))
        self._steps: torch.Tensor | None = None
        numbers = weight
        if eight_bits:
            numbers, self._steps = in_eight_bits(weight)
        self._pairs = numbers.view(-1, _LANES, features // 2, 2).transpose(1, 2).contiguous()
        self._bias = bias
        addresses = map(_address, (self._pairs, self._bias, self._steps))
        self.struct = _Matrix(*addresses, features, self.outs)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`bfloat16[rows, features]` to `[rows, outs]`."""
        x, began = x.contiguous(), time.perf_counter()
        result = torch.empty((len(x), self.outs), dtype=x.dtype)
        _functions().specgym_linear(self.struct, x.data_ptr(), result.data_ptr(), len(x), torch.get_num_threads())
        for found in _watching:
            found.append(Stretch(_PARTS[0], began, time.perf_counter() - began))
        return result


def in_eight_bits(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights as whole numbers from -127 to 127, with a step for each result: the largest of its weights by 127.

    Args:
        weight: `[outs, features]`.

    Returns:
        `int8[outs, features]` and steps, `float32[outs]`.
    """
    exact = weight.float()
    steps = exact.abs().amax(dim=1) / _LARGEST
    numbers = (exact / steps.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round_().to(torch.int8)
    return numbers, steps


class LayerShape(NamedTuple):
    """What a decoder layer is besides its weights; see `specgym.env.models.fast.lean.LeanLayer`."""

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


class Fusion(NamedTuple):
    """How the layers begin with a token's embedding and a feature: each normed, side by side, and made one."""

    token_norm: torch.Tensor
    """`bfloat16[hidden]`"""
    feature_norm: torch.Tensor
    """likewise"""
    matrix: NativeMatrix
    """from `2 * hidden` features"""


class NativeForward:
    """From tokens to logits.

    Args:
        layers: one after the other, of one shape.
        table: of embeddings, `bfloat16[vocabulary, hidden]`.
        norm: weight of the norm after the layers, `bfloat16[hidden]`.
        head: from that to logits.
        epsilon: added to the mean square in norms besides the layers'.
        fusion: if layers begin with more than an embedding.
    """

    def __init__(
        self,
        layers: Sequence[NativeLayer],
        table: torch.Tensor,
        norm: torch.Tensor,
        head: NativeMatrix,
        *,
        epsilon: float,
        fusion: Fusion | None = None,
    ) -> None:
        # The structures point into all of these.
        self._table, self._norm, self._head, self._layers = table.contiguous(), norm.contiguous(), head, layers
        self._norms = () if fusion is None else tuple(norm.contiguous() for norm in fusion[:2])
        self._structs = (POINTER(_Layer) * len(layers))(*(ctypes.pointer(layer.struct) for layer in layers))
        before = (None, None, _Matrix()) if fusion is None else (*map(_address, self._norms), fusion.matrix.struct)
        table_of = self._table.data_ptr(), len(self._table)
        self._frame = _Frame(*table_of, *before, self._norm.data_ptr(), head.struct, epsilon)

    def __call__(
        self,
        tokens: IntArray,
        positions: IntArray,
        angles: tuple[torch.Tensor, torch.Tensor],
        visible: BoolArray | None,
        buffers: Sequence[KeyValueBuffer],
        *,
        keep: int,
        shown: Sequence[int] = (),
        features: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Runs the model.

        Args:
            tokens: `int64[rows]`.
            positions: `int64[rows]`.
            angles: cosines and sines by position, `float32[positions, dim]` and `[positions, dim / 2]`.
            visible: which of the last columns each row sees, its own included, `bool[rows, columns]`; every column
                before them is seen. None where each row sees all before it.
            buffers: of the layers; the rows are already counted in.
            keep: last rows whose logits are wanted.
            shown: numbers of layers whose results are wanted, ascending.
            features: for the fusion, `bfloat16[rows, hidden]`.

        Returns:
            The rows after the last norm, `[rows, hidden]`; logits, `[keep, vocabulary]`; and the rows after each of the
            layers in `shown`.

        Raises:
            IndexError: a token that the table does not have; the rows are not counted in any more.
        """
        began, count = time.perf_counter(), len(self._layers)
        rows, hidden = len(tokens), self._table.shape[1]
        tokens, positions = (np.ascontiguousarray(numbers, np.int64) for numbers in (tokens, positions))
        visible = None if visible is None else np.ascontiguousarray(visible, np.bool_)
        features = None if features is None else features.contiguous()
        last, first, second, *outputs = (_empty(rows, hidden) for _ in range(3 + len(shown)))
        logits, cache = _empty(keep, self._head.outs), buffers[0]
        # Layers write to two places in turns, each to the one that it does not read, but for results that are wanted.
        ends = second.data_ptr(), first.data_ptr()
        results = [ends[number % 2] for number in range(count)]
        for number, output in zip(shown, outputs, strict=True):
            results[number] = output.data_ptr()
        keys, values = ([getattr(buffer, name).data_ptr() for buffer in buffers] for name in ("keys", "values"))
        tables = [(c_void_p * count)(*addresses) for addresses in (results, keys, values)]
        results_at, *states_at = map(ctypes.addressof, tables)
        inputs = tokens.ctypes.data, positions.ctypes.data, _address(features), first.data_ptr()
        seen = (None, 0) if visible is None else (visible.ctypes.data, visible.shape[1])
        sizes = count, rows, keep, cache.length - rows, cache.keys.shape[2], torch.get_num_threads()
        written = results_at, last.data_ptr(), logits.data_ptr()
        work = _Work(*inputs, *written, *states_at, *map(_address, angles), *seen, *sizes)
        wrong = _functions().specgym_forward(self._frame, self._structs, work)
        if wrong >= 0:
            for buffer in buffers:
                buffer.keep(buffer.length - rows)
            raise IndexError(f"Token {tokens[wrong]} is not one of the {len(self._table)} that the model has.")
        for found in _watching:
            found += [Stretch(*part) for part in zip(_PARTS, [began] * len(_PARTS), work.seconds, strict=True)]
        return last, logits, outputs


def _empty(rows: int, width: int) -> torch.Tensor:
    return torch.empty((rows, width), dtype=torch.bfloat16)


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def _works(eight_bits: bool) -> bool:
    """Whether the functions are there and multiply as torch does, tried on a small layer."""
    if find_library(_SOURCE) is None:
        return False
    weight = torch.linspace(-1, 1, 24 * 64).view(24, 64).to(torch.bfloat16)
    x = torch.linspace(-1, 1, 7 * 64).view(7, 64).to(torch.bfloat16)
    found, exact = NativeMatrix(weight, None, eight_bits=eight_bits)(x), weight.float()
    if eight_bits:
        numbers, steps = in_eight_bits(weight)
        exact = numbers * steps[:, None]
    return torch.allclose(found.float(), x.float() @ exact.T, rtol=0.02, atol=0.02)


@functools.cache
def _functions() -> ctypes.CDLL:
    library = find_library(_SOURCE)
    assert library is not None, "asked for before `can_run`"
    library.specgym_linear.argtypes = [POINTER(_Matrix), c_void_p, c_void_p, c_int64, c_int64]
    library.specgym_linear.restype = None
    library.specgym_forward.argtypes = [POINTER(_Frame), POINTER(POINTER(_Layer)), POINTER(_Work)]
    library.specgym_forward.restype = c_int64
    return library

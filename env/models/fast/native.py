"""A model's forward as one call of a compiled function, on machines that can compile and run it.

A plain step of a small model could take as long as it takes to read the weights once. Through a library it takes two to
three times as long. Every operator starts and stops all threads, and kernels for a single row do not use the full speed
of the memory. `native.cpp` computes everything from tokens to logits in one piece, in bfloat16. It needs a CPU with
AVX-512 BF16, or with AVX2, where weights are widened to float32 on the way from memory.

Without a compiler or such a CPU (see `specgym.env.kernels.build`), models use `specgym.env.models.fast.layer`.
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_double, c_float, c_int64, c_void_p
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from specgym.env.models.cache import Buffers, Rows
from specgym.env.models.fast.fixed import Results, Rotation
from specgym.env.models.fast.native_matrix import MatrixStruct, NativeMatrix, add_native_times, address_of, compiled


class _Layer(Structure):
    _fields_ = (
        *((name, MatrixStruct) for name in ("joint", "output", "gate_up", "down")),
        *((name, c_void_p) for name in ("attention_norm", "feed_forward_norm", "query_norm", "key_norm")),
        *((name, c_int64) for name in ("heads", "kv_heads", "dim")),
        *((name, c_float) for name in ("epsilon", "scaling")),
    )


class _Frame(Structure):
    _fields_ = (
        ("table", c_void_p),
        ("vocabulary", c_int64),
        *((name, c_void_p) for name in ("token_norm", "feature_norm")),
        ("fuse", MatrixStruct),
        ("norm", c_void_p),
        ("head", MatrixStruct),
        ("epsilon", c_float),
    )


class _Work(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("tokens", "positions", "features", "stream", "results", "last", "logits")),
        *((name, c_void_p) for name in ("keys", "values", "cos", "sin", "visible")),
        *((name, c_int64) for name in ("columns", "layers", "rows", "kept", "start", "capacity", "threads")),
        ("seconds", c_double * 3),
    )


class LayerShape(NamedTuple):
    """Heads, widths and factors of a decoder layer."""

    heads: int
    """of queries"""
    kv_heads: int
    """of keys and values; divides `heads`"""
    dim: int
    """width of a head"""
    epsilon: float
    """added to the mean square in norms"""
    scaling: float
    """factor of the products of queries and keys"""


class NativeLayer:
    """The weights of a decoder layer, in the form that compiled functions read.

    Args:
        norms: weights of the norms: before attention, before the feed-forward part, and maybe of queries and keys.
        parts: query, key and value; output; gate and up; down.
        shape: heads, widths and factors.
    """

    def __init__(self, norms: Sequence[Tensor], parts: Sequence[NativeMatrix], shape: LayerShape) -> None:
        self._norms, self._parts = [norm.contiguous() for norm in norms], parts  # the structure holds their addresses
        addresses = [address_of(norm) for norm in self._norms] + [None] * (4 - len(norms))
        self.struct = _Layer(*(part.struct for part in parts), *addresses, *shape)


class Fusion(NamedTuple):
    """How a feature draft joins a token's embedding and a feature: both normed, side by side, then one matrix."""

    token_norm: Tensor
    """`bfloat16[hidden]`"""
    feature_norm: Tensor
    """`bfloat16[hidden]`"""
    matrix: NativeMatrix
    """from `2 * hidden` features to `hidden`"""


class NativeForward:
    """A forward from tokens to logits.

    Args:
        layers: one after the other, all of one shape.
        table: of embeddings, `bfloat16[vocabulary, hidden]`.
        norm: weight of the norm after the layers, `bfloat16[hidden]`.
        head: from the normed rows to logits.
        epsilon: added to the mean square in norms outside of the layers.
        fusion: given if layers begin with embeddings and features.
    """

    def __init__(
        self,
        layers: Sequence[NativeLayer],
        table: Tensor,
        norm: Tensor,
        head: NativeMatrix,
        *,
        epsilon: float,
        fusion: Fusion | None = None,
    ) -> None:
        # The structures hold addresses of all of these.
        self._table, self._norm, self._head, self._layers = table.contiguous(), norm.contiguous(), head, layers
        self._norms = () if fusion is None else tuple(norm.contiguous() for norm in fusion[:2])
        self._structs = (POINTER(_Layer) * len(layers))(*(ctypes.pointer(layer.struct) for layer in layers))
        norms = map(address_of, self._norms or (None, None))
        fuse = MatrixStruct() if fusion is None else fusion.matrix.struct
        table_size = self._table.data_ptr(), len(self._table)
        self._frame = _Frame(*table_size, *norms, fuse, self._norm.data_ptr(), head.struct, epsilon)

    def __call__(
        self,
        inputs: Rows,
        rotation: Rotation,
        buffers: Buffers,
        *,
        keep: int,
        shown: Sequence[int],
        features: Tensor | None,
    ) -> Results:
        """Runs the model.

        Args:
            inputs: the rows. Without `visible` each row sees all before it.
            rotation: cosines and sines by position, `float32[positions, dim]` and `[positions, dim / 2]`.
            buffers: keys and values of the layers; the rows are already counted in.
            keep: last rows whose logits are computed.
            shown: layers whose results are returned, counted from 0, ascending.
            features: input of the fusion, `bfloat16[rows, hidden]`.

        Returns:
            The rows after the last norm, `[rows, hidden]`; logits, `[keep, vocabulary]`; and the rows after each of the
            layers in `shown`.

        Raises:
            IndexError: a token that the table does not have; then the buffers count the rows no more.
        """
        began, count = time.perf_counter(), len(self._layers)
        rows, hidden = len(inputs.tokens), self._table.shape[1]
        tokens, positions = (np.ascontiguousarray(numbers, np.int64) for numbers in inputs[:2])
        visible = None if inputs.visible is None else np.ascontiguousarray(inputs.visible, np.bool_)
        features = None if features is None else features.contiguous()
        last, first, second, *outputs = (
            torch.empty((rows, hidden), dtype=torch.bfloat16, device="cpu") for _ in range(3 + len(shown))
        )
        logits, cache = torch.empty((keep, self._head.outs), dtype=torch.bfloat16, device="cpu"), buffers[0]
        # Layers write to two places in turns, never to the one they read; results that are returned have their own.
        ends = second.data_ptr(), first.data_ptr()
        results = [ends[number % 2] for number in range(count)]
        for number, output in zip(shown, outputs, strict=True):
            results[number] = output.data_ptr()
        keys, values = ([getattr(buffer, name).data_ptr() for buffer in buffers] for name in ("keys", "values"))
        tables = [(c_void_p * count)(*addresses) for addresses in (results, keys, values)]
        results_at, *states_at = map(ctypes.addressof, tables)
        read = tokens.ctypes.data, positions.ctypes.data, address_of(features), first.data_ptr()
        columns = (None, 0) if visible is None else (visible.ctypes.data, visible.shape[1])
        sizes = count, rows, keep, cache.length - rows, cache.keys.shape[2], torch.get_num_threads()
        written = results_at, last.data_ptr(), logits.data_ptr()
        work = _Work(*read, *written, *states_at, *map(address_of, rotation), *columns, *sizes)
        unknown = _forward_function()(self._frame, self._structs, work)
        if unknown >= 0:
            for buffer in buffers:
                buffer.keep(buffer.length - rows)
            raise IndexError(f"Token {tokens[unknown]} is not one of the {len(self._table)} that the model has.")
        add_native_times(began, list(work.seconds))
        return last, logits, outputs


@functools.cache
def _forward_function() -> Callable[..., int]:
    return compiled("specgym_forward", c_int64, POINTER(_Frame), POINTER(POINTER(_Layer)), POINTER(_Work))

"""Rows of all layers' keys and values moved up at once, on a CPU by a compiled function.

A round that accepts another path than the first moves a few rows in every layer: little work, but four of torch's
operators a layer, which together take as long as a level of the draft.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import POINTER, c_int64, c_void_p
from pathlib import Path

import torch

from specgym.env.common.arrays import IntArray
from specgym.env.kernels.build import find_library
from specgym.env.kernels.transfer import to_device_async

_SOURCE = Path(__file__).with_name("moving.cpp")


@functools.cache
def _functions() -> ctypes.CDLL | None:
    library = find_library(_SOURCE)
    if library is not None:
        library.specgym_move.argtypes = [c_void_p, *[c_int64] * 5, POINTER(c_int64), c_int64]
        library.specgym_move.restype = None
    return library


def move_rows(buffers: Sequence[torch.Tensor], prefix: int, rows: IntArray) -> None:
    """Writes rows of every buffer behind its first ones.

    Args:
        buffers: `[1, heads, capacity, dim]` each.
        prefix: rows that stay.
        rows: which ones go behind them, ascending, none of them before the prefix, `int64[moved]`.
    """
    first = buffers[0]
    functions = _functions() if first.device.type == "cpu" else None
    if functions is None or not all(_alike(buffer, first) for buffer in buffers):
        index = to_device_async(rows, first.device)
        for buffer in buffers:
            buffer[:, :, prefix : prefix + len(rows)] = buffer[:, :, index]
        return
    addresses = (c_void_p * len(buffers))(*(buffer.data_ptr() for buffer in buffers))
    batch, heads, capacity, dim = first.shape
    numbers = (c_int64 * len(rows))(*rows.tolist())
    sizes = len(buffers), batch * heads, capacity, dim * first.element_size()
    functions.specgym_move(addresses, *sizes, prefix, numbers, len(rows))


def _alike(buffer: torch.Tensor, first: torch.Tensor) -> bool:
    """Whether two buffers are of one shape and precision, without gaps."""
    return buffer.shape == first.shape and buffer.dtype == first.dtype and buffer.is_contiguous()

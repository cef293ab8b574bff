"""Moves numbers: kept rows of caches, arrays to a device, and unused pages out of memory.

A round whose accepted path is not the first one moves a few rows in every layer. This is little work, but it takes four
of torch's operators a layer. Together they take as long as a level of the draft. So on a CPU, a compiled function moves
the rows of all layers' keys and values at once.

A safetensors file is mapped, not read: its pages come into memory on first use. Once a packed copy of the weights is
used instead, these pages need not stay. A later reader gets them from the file again. So the model object is unchanged,
and its weights are in memory once.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
from collections.abc import Sequence
from ctypes import POINTER, c_int64, c_void_p
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from specgym.env.common.arrays import IntArray
from specgym.env.kernels.build import find_library

_SOURCE = Path(__file__).with_name("moving.cpp")
_PAGES = Path("/proc/self/pagemap")
_ENTRY = 8  # bytes of a page's entry in the page map
_HELD, _SWAPPED, _OF_A_FILE = (np.uint64(1) << np.uint64(bit) for bit in (63, 62, 61))


@functools.cache
def _functions() -> ctypes.CDLL | None:
    library = find_library(_SOURCE)
    if library is not None:
        library.specgym_move.argtypes = [c_void_p, *[c_int64] * 5, POINTER(c_int64), c_int64]
        library.specgym_move.restype = None
    return library


def move_rows(buffers: Sequence[torch.Tensor], prefix: int, rows: IntArray) -> None:
    """Moves rows of every buffer up, right behind its prefix.

    Args:
        buffers: `[1, heads, capacity, dim]` each.
        prefix: number of rows that stay.
        rows: rows that move, ascending, all behind the prefix, `int64[moved]`.
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


def to_device_async(numbers: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Copies an array to a device, without waiting until a GPU has it."""
    tensor = torch.from_numpy(numbers)
    if device.type != "cuda":
        return tensor.to(device)
    # A copy from pageable memory would wait for all earlier work of the GPU.
    return tensor.pin_memory().to(device, non_blocking=True)


def _alike(buffer: torch.Tensor, first: torch.Tensor) -> bool:
    """Whether a buffer has the shape and precision of the first one, and no gaps."""
    return buffer.shape == first.shape and buffer.dtype == first.dtype and buffer.is_contiguous()


def release_pages(weight: torch.Tensor) -> bool:
    """Takes a tensor's pages out of memory; they come back when they are read.

    Numbers that exist in memory only stay: those that were made there, and those that have changed since they were
    mapped.

    Returns:
        Whether the pages were taken out; False also on systems without a page map, such as all but Linux.
    """
    if weight.device.type != "cpu" or not weight.is_contiguous():
        return False
    first = weight.data_ptr() // mmap.PAGESIZE
    count = -(-(weight.data_ptr() + weight.nbytes) // mmap.PAGESIZE) - first
    try:
        pages = np.fromfile(_PAGES, np.uint64, count, offset=first * _ENTRY)
        held = pages & _HELD != 0
        # Only if all pages in memory are unchanged pages of files.
        if len(pages) < count or np.any(pages & _SWAPPED) or not np.all(pages[held] & _OF_A_FILE):
            return False
        start, length = ctypes.c_void_p(first * mmap.PAGESIZE), ctypes.c_size_t(count * mmap.PAGESIZE)
        return bool(ctypes.CDLL(None).madvise(start, length, mmap.MADV_DONTNEED) == 0)
    except (OSError, AttributeError, TypeError):  # no page map, no such call, no C library to be found
        return False


def trim_heap() -> None:
    """Makes the C library give freed memory back to the system, where it can."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)

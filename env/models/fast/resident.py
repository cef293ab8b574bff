"""Giving memory back to the system that nobody needs for now.

A safetensors file is mapped rather than read: its pages come into memory when somebody looks at them. Where the weights
of a model are such pages and a packed copy of them is read instead, they need not stay: whoever looks at them later
gets them from the file again. So a model object is as it was, and held once.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from pathlib import Path

import numpy as np
import torch

_PAGES = Path("/proc/self/pagemap")
_ENTRY = 8  # bytes that the page map has of a page
_HELD, _SWAPPED, _OF_A_FILE = (np.uint64(1) << np.uint64(bit) for bit in (63, 62, 61))


def return_pages(weight: torch.Tensor) -> bool:
    """Takes a tensor's pages out of memory; they come back when they are read.

    Nothing happens to numbers that are nowhere else: those that were made in memory, and those that were changed since
    they were mapped.

    Returns:
        Whether they were taken out; False too where the system cannot say what its pages are, or is not Linux.
    """
    if weight.device.type != "cpu" or not weight.is_contiguous():
        return False
    first = weight.data_ptr() // mmap.PAGESIZE
    count = -(-(weight.data_ptr() + weight.nbytes) // mmap.PAGESIZE) - first
    try:
        pages = np.fromfile(_PAGES, np.uint64, count, offset=first * _ENTRY)
        if len(pages) < count or not _in_files(pages):
            return False
        start, length = ctypes.c_void_p(first * mmap.PAGESIZE), ctypes.c_size_t(count * mmap.PAGESIZE)
        return bool(ctypes.CDLL(None).madvise(start, length, mmap.MADV_DONTNEED) == 0)
    except (OSError, AttributeError, TypeError):  # no page map, no such call, no C library to be found
        return False


def return_freed() -> None:
    """Has the C library return what was freed and is kept for the next request, where it can."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _in_files(pages: np.ndarray) -> bool:
    """Whether all of the pages that are held stand in files just so: one that was changed is the process's own."""
    held = pages & _HELD != 0
    return not np.any(pages & _SWAPPED) and bool(np.all(pages[held] & _OF_A_FILE))

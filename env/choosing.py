"""What choosing a token takes for every token of the vocabulary: noise, and finding the best.

On a CPU both are loops of our own where they can be compiled (`choosing.cpp`), with the very results of torch's
operators, in a fifth of the time.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import c_int64, c_uint32, c_void_p
from pathlib import Path

import torch

from env.compiled import find_library

__all__ = ["best", "gumbel"]

_SOURCE = Path(__file__).with_name("choosing.cpp")
_LOW = 0xFFFFFFFF


@functools.cache
def _functions() -> ctypes.CDLL | None:
    library = find_library(_SOURCE)
    if library is not None:
        library.specgym_gumbel.argtypes = [c_uint32, c_uint32, c_int64, c_int64, c_void_p]
        for of_dtype in (library.specgym_best_bfloat16, library.specgym_best_float32):
            of_dtype.argtypes = [c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p]
    return library


def gumbel(key: int, vocabulary: int, device: torch.device) -> torch.Tensor:
    """Standard Gumbel noise of every token, a pure function of key and token, `float32[vocabulary]`.

    Args:
        key: 64 bits.
        vocabulary: number of tokens.
        device: where it is wanted.
    """
    functions = _functions() if device.type == "cpu" else None
    if functions is None:
        return _gumbel(key, torch.arange(vocabulary, dtype=torch.int32, device=device))
    noise = torch.empty(vocabulary)
    functions.specgym_gumbel(key & _LOW, key >> 32, vocabulary, torch.get_num_threads(), noise.data_ptr())
    return noise


def best(logits: torch.Tensor, noise: Sequence[torch.Tensor] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest score of each row, and its token: of equal ones the first; NaN if there is one in the row.

    Args:
        logits: of any precision, `[rows, vocabulary]`.
        noise: what is added to each row, `float32[vocabulary or more]` each; None for nothing.

    Returns:
        `[rows]` and `int64[rows]`; where the score is NaN, the token means nothing.
    """
    functions = _functions() if logits.device.type == "cpu" else None
    if functions is None or logits.dtype not in (torch.bfloat16, torch.float32):
        rows, width = logits.shape
        scores = logits if noise is None else logits.float() + torch.stack([row[:width] for row in noise])
        found = scores.max(dim=-1)
        return found.values, found.indices
    logits = logits.contiguous()
    rows, width = logits.shape
    values, tokens = torch.empty(rows), torch.empty(rows, dtype=torch.int64)
    added = None if noise is None else (c_void_p * rows)(*(row.data_ptr() for row in noise))
    call = functions.specgym_best_float32 if logits.dtype == torch.float32 else functions.specgym_best_bfloat16
    call(logits.data_ptr(), added, rows, width, values.data_ptr(), tokens.data_ptr())
    return values, tokens


def _gumbel(key: int, tokens: torch.Tensor) -> torch.Tensor:
    """`gumbel` by torch's operators, of `int32[tokens]`."""
    bits = _mix32(_mix32(tokens ^ _signed(key)) ^ _signed(key >> 32))
    # The middle of one of 2^32 cells of (0, 1), never 0 or 1; float32 would round the last cells to 1.
    uniform = (bits.to(torch.float64) + (2.0**31 + 0.5)) * 2.0**-32
    return uniform.log_().neg_().log_().neg_().to(torch.float32)


def _signed(key: int) -> int:
    """The low 32 bits of `key` as a signed integer."""
    return (key & _LOW) - ((key & 0x80000000) << 1)


def _mix32(bits: torch.Tensor) -> torch.Tensor:
    """A full-avalanche 32-bit mixer (Wellons, "lowbias32") on int32, whose products wrap as unsigned ones do."""
    bits = bits ^ ((bits >> 16) & 0xFFFF)  # int32 shifts copy the sign: the mask makes them logical
    bits = bits * 0x7FEB352D
    bits = bits ^ ((bits >> 15) & 0x1FFFF)
    bits = bits * _signed(0x846CA68B)
    return bits ^ ((bits >> 16) & 0xFFFF)

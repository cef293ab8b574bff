"""The parts of choosing a token that go over the whole vocabulary: noise, the best token, and the best few.

On a CPU they are compiled loops (`choosing.cpp`) where a compiler is there. These take a fifth of the time of torch's
operators. Noise and the best token have the same bits as torch's, log-probabilities nearly the same.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Callable, Sequence
from ctypes import c_int64, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specgym.env.common.arrays import FloatArray, IntArray
from specgym.env.kernels.build import find_library

_SOURCE = Path(__file__).with_name("choosing.cpp")
_LOW = 0xFFFFFFFF
# Compiled loops write to these. A user may have set another default device and precision.
_FLOATS: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
_DOUBLES: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
_INTEGERS: dict[str, Any] = {"dtype": torch.int64, "device": "cpu"}


@functools.cache
def _functions() -> ctypes.CDLL | None:
    library = find_library(_SOURCE)
    if library is not None:
        library.specgym_gumbel.argtypes = [c_uint32, c_uint32, c_int64, c_int64, c_void_p]
        for dtype in ("bfloat16", "float32"):
            best_of, rank = (getattr(library, f"specgym_{name}_{dtype}") for name in ("best", "rank"))
            best_of.argtypes = [c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p]
            rank.argtypes = [*[c_void_p] * 3, *[c_int64] * 4, *[c_void_p] * 4]
            best_of.restype = rank.restype = None
        library.specgym_candidates.argtypes = [*[c_void_p] * 3, *[c_int64] * 3, *[c_void_p] * 2]
        library.specgym_candidates.restype = None
    return library


def gumbel(key: int, vocabulary: int, device: torch.device) -> torch.Tensor:
    """Returns standard Gumbel noise for every token, a pure function of key and token, `float32[vocabulary]`.

    Args:
        key: 64 bits.
        vocabulary: number of tokens.
        device: device of the result.
    """
    functions = _functions() if device.type == "cpu" else None
    if functions is None:
        return _gumbel(key, torch.arange(vocabulary, dtype=torch.int32, device=device))
    noise = torch.empty(vocabulary, **_FLOATS)
    functions.specgym_gumbel(key & _LOW, key >> 32, vocabulary, torch.get_num_threads(), noise.data_ptr())
    return noise


def best(logits: torch.Tensor, noise: Sequence[torch.Tensor] | None = None) -> tuple[FloatArray, IntArray]:
    """Finds the highest score of each row and its token, the first one of equal scores; NaN if the row has a NaN.

    Args:
        logits: `[rows, vocabulary]`, in any precision.
        noise: added to each row, `float32[vocabulary or more]` each; None for no noise.

    Returns:
        `float64[rows]` and `int64[rows]`, read from the device in one transfer. Where the score is NaN, the token has
        no meaning.
    """
    if (call := _function("best", logits)) is None:
        highest = noisy(logits, noise).max(dim=-1)
        return _read(highest.values, highest.indices)
    logits = logits.contiguous()
    rows, width = logits.shape
    values, tokens = torch.empty(rows, **_DOUBLES), torch.empty(rows, **_INTEGERS)
    numbers = rows, width, min(torch.get_num_threads(), rows)
    call(logits.data_ptr(), _addresses(noise), *numbers, values.data_ptr(), tokens.data_ptr())
    return values.numpy(), tokens.numpy()


def ranked(
    logits: torch.Tensor,
    count: int,
    noise: Sequence[torch.Tensor] | None = None,
    token_ids: torch.Tensor | None = None,
    *,
    entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Finds the likeliest entries of each row under the softmax of the scores, best first.

    Args:
        logits: `[rows, vocabulary]`, in any precision.
        count: number of entries.
        noise: added to each row, `float32[tokens]` each; None for no noise.
        token_ids: the token whose noise each entry gets, `int64[vocabulary]`; None if entry n is token n.
        entropy: whether to compute the entropy of the softmax of the logits as well.

    Returns:
        Log-probabilities `float32[rows, count]`, numbers of the entries `int64[rows, count]`, and entropies without
        noise, `float32[rows]` [nats], or None. A row with a NaN has NaN everywhere.
    """
    if (call := _function("rank", logits)) is None:
        top = noisy(logits, noise, token_ids).float().log_softmax(dim=-1).topk(count, dim=-1)
        nats = torch.special.entr(logits.float().softmax(dim=-1)).sum(dim=-1) if entropy else None
        return top.values, top.indices, nats
    logits = logits.contiguous()
    rows, width = logits.shape
    threads = min(torch.get_num_threads(), rows)
    values, entries = torch.empty((rows, count), **_FLOATS), torch.empty((rows, count), **_INTEGERS)
    memory, tokens = torch.empty((threads, width), **_FLOATS), _ids_address(token_ids, width)
    nats = torch.empty(rows, **_FLOATS) if entropy else None
    results = values.data_ptr(), entries.data_ptr(), None if nats is None else nats.data_ptr()
    numbers = rows, width, count, threads
    call(logits.data_ptr(), _addresses(noise), tokens, *numbers, memory.data_ptr(), *results)
    return values, entries, nats


def to_candidates(
    values: torch.Tensor,
    entries: torch.Tensor,
    k: int,
    token_ids: torch.Tensor | None = None,
    nats: torch.Tensor | None = None,
) -> tuple[FloatArray, IntArray, FloatArray | None]:
    """Copies results of `ranked` to the host: as tokens, and rounded to bfloat16 and then to half precision.

    Args:
        values: `float32[rows, count]`.
        entries: `int64[rows, count]`.
        k: number of entries to keep of each row.
        token_ids: the token of each entry, `int64[vocabulary]`; None if entry n is token n.
        nats: entropies, `float32[rows]`, or None.

    Returns:
        `float64[rows, k]`, `int64[rows, k]` and entropies in half precision, `float64[rows]`, or None; read from the
        device in one transfer. Where a value is NaN, the token has no meaning.
    """
    functions = _functions() if values.device.type == "cpu" else None
    if functions is None:
        values, entries = values[:, :k].bfloat16().half(), entries[:, :k]
        entries = entries if token_ids is None else token_ids[entries]
        if nats is None:
            return *_read(values, entries), None
        # Entropies travel as the last column.
        both = torch.cat([values, nats.half()[:, None]], dim=1)
        numbers, indices = _read(both, torch.nn.functional.pad(entries, (0, 1)))
        return numbers[:, :-1], indices[:, :-1], numbers[:, -1]
    if values.dtype != torch.float32 or entries.dtype != torch.int64 or entries.shape != values.shape:
        raise TypeError(f"Expected float32 and int64 of one shape; got {values.dtype} and {entries.dtype}.")
    values, entries = values.contiguous(), entries.contiguous()
    rows, count = values.shape
    log_probs = torch.empty((rows, k), **_DOUBLES)
    ids = torch.empty((rows, k), **_INTEGERS)
    tokens = _ids_address(token_ids)
    sizes, results = (rows, count, k), (log_probs.data_ptr(), ids.data_ptr())
    functions.specgym_candidates(values.data_ptr(), entries.data_ptr(), tokens, *sizes, *results)
    return log_probs.numpy(), ids.numpy(), None if nats is None else nats.half().double().numpy()


def _read(values: torch.Tensor, tokens: torch.Tensor) -> tuple[FloatArray, IntArray]:
    """Reads two tensors of one shape in one transfer; float64 holds every token id exactly."""
    if values.device.type == "cpu":
        return values.double().numpy(), tokens.numpy()
    both = torch.stack([values.double(), tokens.double()]).cpu().numpy()
    return both[0], both[1].astype(np.int64)


def _function(name: str, logits: torch.Tensor) -> Callable[..., None] | None:
    """Returns the compiled function for such logits, if there is one."""
    functions = _functions() if logits.device.type == "cpu" else None
    dtype = {torch.bfloat16: "bfloat16", torch.float32: "float32"}.get(logits.dtype)
    return None if functions is None or dtype is None else getattr(functions, f"specgym_{name}_{dtype}")


def _addresses(rows: Sequence[torch.Tensor] | None) -> ctypes.Array[c_void_p] | None:
    if rows is None:
        return None
    if any(row.dtype != torch.float32 or not row.is_contiguous() for row in rows):
        raise TypeError(f"Expected noise of float32 without gaps; got {', '.join(str(row.dtype) for row in rows)}.")
    return (c_void_p * len(rows))(*(row.data_ptr() for row in rows))


def _ids_address(ids: torch.Tensor | None, width: int | None = None) -> int | None:
    """Returns the address of token ids for compiled functions, which read 8 bytes an id. Raises `TypeError`."""
    if ids is None:
        return None
    if ids.dtype != torch.int64 or not ids.is_contiguous() or width not in (None, len(ids)):
        raise TypeError(f"Expected token ids of int64, {width or 'any number'} of them; got {len(ids)} of {ids.dtype}.")
    return ids.data_ptr()


def noisy(
    logits: torch.Tensor, noise: Sequence[torch.Tensor] | None, token_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns scores: the logits plus noise, if any. Arguments as for `ranked`."""
    if noise is None:
        return logits
    columns = slice(logits.shape[1]) if token_ids is None else token_ids
    scores, start = logits.to(torch.float32, copy=True), 0
    for _, group in itertools.groupby(noise, key=id):  # rows of one depth are neighbours and share their noise
        shared = list(group)
        scores[start : start + len(shared)] += shared[0][columns]
        start += len(shared)
    return scores


def _gumbel(key: int, tokens: torch.Tensor) -> torch.Tensor:
    """`gumbel` by torch's operators, for `int32[tokens]`."""
    bits = _mix32(_mix32(tokens ^ _signed(key)) ^ _signed(key >> 32))
    # The middle of one of 2^32 cells of (0, 1), so never 0 or 1; float32 would round the last cells to 1.
    uniform = (bits.to(torch.float64) + (2.0**31 + 0.5)) * 2.0**-32
    return uniform.log_().neg_().log_().neg_().to(torch.float32)


def _signed(key: int) -> int:
    """Returns the low 32 bits of `key` as a signed integer."""
    return (key & _LOW) - ((key & 0x80000000) << 1)


def _mix32(bits: torch.Tensor) -> torch.Tensor:
    """Mixes 32 bits (Wellons, "lowbias32") on int32, whose products wrap as unsigned ones do."""
    bits = bits ^ ((bits >> 16) & 0xFFFF)  # int32 shifts copy the sign: the mask makes them logical
    bits = bits * 0x7FEB352D
    bits = bits ^ ((bits >> 15) & 0x1FFFF)
    bits = bits * _signed(0x846CA68B)
    return bits ^ ((bits >> 16) & 0xFFFF)

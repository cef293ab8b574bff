"""What this machine can do at best: how fast it reads memory, and how fast it multiplies.

Both are the best that was seen, never a mean: a floor made of them shall be one that nothing goes below.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNKNOWN_CACHE = 64 * 2**20  # taken for the last-level cache where the system does not tell [bytes]
_TIMES_CACHE = 8  # size of the buffer that is read, in last-level caches
_SMALLEST_BUFFER = 2**28  # [bytes]
_READS = 5  # readings of the buffer by each operator
_SIDES = {"cpu": (256, 4096), "cuda": (1024, 16384)}  # smallest and largest matrices [rows]
_LONG_ENOUGH = 0.05  # a product that takes this long is a large one [s]
_PRODUCTS = 3  # products of each size


@dataclass(frozen=True)
class MachineRates:
    """The machine at its best, with the threads that torch uses."""

    read_bytes_per_second: float
    """bandwidth of reading memory [bytes/s]"""
    operations_per_second: float
    """operations of a large product in the models' precision, or in float32 if that is faster [1/s]"""
    buffer_bytes: int
    """the buffer that was read [bytes]"""
    cache_bytes: int
    """the last-level cache that it has to exceed [bytes]"""

    def best(self, other: MachineRates) -> MachineRates:
        """The higher of both rates: noise only ever slows a machine down."""
        return dataclasses.replace(
            self,
            read_bytes_per_second=max(self.read_bytes_per_second, other.read_bytes_per_second),
            operations_per_second=max(self.operations_per_second, other.operations_per_second),
        )


def measure_rates(dtype: torch.dtype, device: torch.device) -> MachineRates:
    """Measures both, in a few seconds.

    Args:
        dtype: the precision of the products.
        device: where.
    """
    cache = last_level_cache(device)
    size = max(_TIMES_CACHE * cache, _SMALLEST_BUFFER)
    if device.type == "cpu" and (memory := _memory_bytes()):
        size = min(size, max(memory // 8, 2 * cache))
    # Half precision can be multiplied as float32: the faster way where a processor has no instructions for it.
    multiplies = max(multiply_rate(precision, device) for precision in {dtype, torch.float32})
    return MachineRates(read_rate(size, device), multiplies, size, cache)


def last_level_cache(device: torch.device) -> int:
    """Size of the largest cache between processor and memory [bytes]; a guess where the system does not tell."""
    if device.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or _UNKNOWN_CACHE
    sizes = [_size(path.read_text(encoding="ascii")) for path in _CACHES.glob("index*/size")]
    return max(sizes, default=0) or _UNKNOWN_CACHE


def read_rate(size: int, device: torch.device) -> float:
    """Bandwidth of reading a buffer of `size` bytes from end to end, by the operator that is best at it [bytes/s].

    The buffer is filled with random numbers first: pages that nobody has written are all one and the same page of
    zeros, which the cache holds.
    """
    buffer = torch.rand(size // 4, device=device)
    matrix = buffer[: len(buffer) // 4096 * 4096].view(-1, 4096)
    vector = torch.rand(4096, device=device)
    reads: tuple[Callable[[], object], ...] = (buffer.sum, buffer.max, lambda: matrix @ vector)
    return max(matrix.nbytes / seconds for read in reads for seconds in _timed(read, _READS, device))


def multiply_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of products of square matrices, which grow until one takes long enough to count [1/s]."""
    side, largest = _SIDES["cuda" if device.type == "cuda" else "cpu"]
    best = 0.0
    while True:
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        seconds = min(_timed(lambda a=left, b=right: a @ b, _PRODUCTS, device))  # type: ignore[misc]
        best = max(best, 2 * side**3 / seconds)
        if seconds >= _LONG_ENOUGH or side >= largest:
            return best
        side *= 2


def _timed(call: Callable[[], object], count: int, device: torch.device) -> Iterator[float]:
    """Times of calls after one that only warms up [s]."""
    for number in range(count + 1):
        _finish(device)
        began = time.perf_counter()
        call()
        _finish(device)
        if number:
            yield time.perf_counter() - began


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _size(text: str) -> int:
    """Bytes of a size as Linux writes it: ``32768K``."""
    found = re.fullmatch(r"(\d+)([KMG]?)", text.strip())
    return int(found[1]) * 1024 ** " KMG".index(found[2] or " ") if found else 0


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0

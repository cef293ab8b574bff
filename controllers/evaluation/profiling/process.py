"""Measures this process: its start, its memory, and whether it grows while it serves request after request."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from specgym.controllers.controller import Controller
from specgym.controllers.run import run
from specgym.env.decoding.live import LiveDecoder
from specgym.env.kernels.build import compile_seconds
from specgym.env.kernels.moving import trim_heap
from specgym.env.latency.measure import longest_text
from specgym.env.tree.rounds import Request, Stopwatch
from specgym.env.tree.sampling import SamplingSettings

_Result = TypeVar("_Result")

if sys.platform != "win32":
    import resource

MAX_NEW_TOKENS = 16
"""length of an answer [tokens]"""
WARM_UP = 100
"""requests before memory is first measured: some caches by number of rows fill slowly"""
_RESET, _STATE, _MAPPINGS = (Path("/proc/self", name) for name in ("clear_refs", "statm", "smaps"))
_PROCESS, _SYSTEM = Path("/proc/self/stat"), Path("/proc/uptime")
_PROMPT, _ANSWER = 256, 16  # maximum lengths of the first text [tokens]
_STARTED = 19  # index of the start time among the fields after the process's name


@dataclass(frozen=True)
class Startup:
    """Times of a process's start [s]."""

    imports: float | None  # Python and libraries, from the start of the process to the command's; None if unknown
    loading: float  # both models, until their weights are laid out as forwards read them
    first_text: float  # the first text
    same_text: float  # the same text once more
    compiling: float | None  # compiled functions, once for a machine and left out above; None if it has none

    @property
    def total(self) -> float:
        """Time until a process decodes at full speed, on a machine with everything compiled [s]."""
        return (self.imports or 0.0) + self.loading + self.first_text - self.same_text


def without_compiling(work: Callable[[], _Result]) -> tuple[_Result, float]:
    """Returns the result of `work` and its time without compiling, which is done once for a machine [s]."""
    before, watch = compile_seconds() or 0.0, Stopwatch()
    result = work()
    return result, watch.lap() - ((compile_seconds() or 0.0) - before)


def process_age() -> float | None:
    """Returns how long this process has been running [s]; None where the system does not report it."""
    try:
        fields = _PROCESS.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        uptime = float(_SYSTEM.read_text(encoding="ascii").split()[0])
        return max(uptime - int(fields[_STARTED]) / os.sysconf("SC_CLK_TCK"), 0.0)
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def measure_startup(
    decoder: LiveDecoder, controller: Controller, prompt: tuple[int, ...], imports: float | None, loading: float
) -> Startup:
    """Times the first text of this process, and the same text once more. The other times are given."""
    length = max(1, min(_PROMPT, longest_text(decoder) - _ANSWER))
    request = Request(prompt[:length], _ANSWER, ignore_end=True)
    first, same = (without_compiling(lambda: run(decoder, controller, request))[1] for _ in range(2))
    return Startup(imports, loading, first, same, compile_seconds())


def memory_held(device: torch.device, files: bool = True) -> int | None:
    """Returns the memory held now by the process, or on a GPU by its tensors, after a garbage collection [bytes].

    Freed memory is returned to the system first. Pieces that stay with the C library would count as held, and their
    number settles only after hundreds of requests.

    Args:
        device: where the tensors are.
        files: whether to count pages of files, which the system may drop and read again. Mapped weights are such
            pages: ever more of them are held as more tokens' embeddings are read.

    Returns:
        None where the system does not report it.
    """
    gc.collect()
    trim_heap()
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    try:
        _, resident, shared, *_ = map(int, _STATE.read_text(encoding="ascii").split())
        return (resident - (0 if files else shared)) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def library_pages() -> int | None:
    """Returns the memory of shared libraries [bytes], which are read page by page as their code runs.

    None where the system does not report it.
    """
    try:
        text = _MAPPINGS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # Each mapping begins with a line of addresses, …, and the mapped file.
    mappings = (mapping.partition("\n") for mapping in re.split(r"\n(?=[0-9a-f]+-)", text))
    libraries = "\n".join(rest for head, _, rest in mappings if ".so" in Path(head).suffixes)
    return sum(1024 * int(size) for size in re.findall(r"^Rss:\s+(\d+)", libraries, re.MULTILINE))


def memory_peak(device: torch.device) -> int | None:
    """Returns the most memory held since `forget_peak` [bytes]; None where the system does not report it."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak(device: torch.device) -> None:
    """Restarts the peak from now on; where the system cannot, the peak stays the whole process's.

    Freed memory is returned to the system first, since it would count as held.
    """
    gc.collect()
    trim_heap()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        _RESET.write_text("5", encoding="ascii")  # 5: the high-water mark of resident memory


@dataclass(frozen=True)
class Growth:
    """The process's own memory before and after many requests [bytes]; None where the system does not report it."""

    requests: int  # after the warm-up
    after_warm_up: int | None
    after_last: int | None

    @property
    def bytes_per_request(self) -> float | None:
        """Average growth by a request [bytes]."""
        if self.after_warm_up is None or self.after_last is None:
            return None
        return (self.after_last - self.after_warm_up) / self.requests


def check_growth(
    decoder: LiveDecoder,
    controller: Controller,
    prompts: Sequence[tuple[int, ...]],
    requests: int,
    *,
    progress: Callable[[], None] = lambda: None,
) -> Growth:
    """Generates short answers, greedy and sampled in turns, and measures memory after a warm-up and at the end.

    Args:
        decoder: the pair's decoder.
        controller: the controller that steers.
        prompts: token ids, used in turns, by the warm-up too.
        requests: number of requests after the warm-up.
        progress: called after every request.

    Raises:
        LimitError: a prompt leaves no room in the context.
    """
    after_warm_up = None
    for number, prompt in enumerate(itertools.islice(itertools.cycle(prompts), WARM_UP + requests)):
        if number == WARM_UP:
            after_warm_up = memory_held(decoder.target.device, files=False)
        sampling = SamplingSettings(float(number % 2), seed=number)
        run(decoder, controller, Request(prompt, MAX_NEW_TOKENS, sampling, ignore_end=True))
        progress()
    return Growth(requests, after_warm_up, memory_held(decoder.target.device, files=False))

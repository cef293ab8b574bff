"""How much memory this process holds."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from pathlib import Path

import torch

from specgym.env.models.fast.resident import return_freed

if sys.platform != "win32":
    import resource

_RESET, _STATE, _MAPPINGS = (Path("/proc/self", name) for name in ("clear_refs", "statm", "smaps"))


def memory_held(device: torch.device) -> int | None:
    """What is held now, after a collection of garbage: by the process, or on a GPU by its tensors [bytes].

    What was freed is returned first: pieces of it that stay with the C library would count as held, and their number
    settles only after hundreds of requests.

    None where the system does not tell.
    """
    return _held(device, files=True)


def memory_owned(device: torch.device) -> int | None:
    """The same without pages of files, which the system may drop and read again: weights that are mapped, for example,
    of which ever more tokens' embeddings are looked at [bytes].
    """
    return _held(device, files=False)


def _held(device: torch.device, files: bool) -> int | None:
    gc.collect()
    return_freed()
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    try:
        _, resident, shared, *_ = map(int, _STATE.read_text(encoding="ascii").split())
        return (resident - (0 if files else shared)) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def library_pages() -> int | None:
    """How much of shared libraries is held now [bytes]: they come in page by page, as their code is run.

    None where the system does not tell.
    """
    try:
        lines = _MAPPINGS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    pages, library = 0, False
    for line in lines:
        word, *rest = line.split(maxsplit=5)
        if not word.endswith(":"):  # the head of a mapping: addresses, ..., and what is mapped
            library = len(rest) == 5 and ".so" in Path(rest[4]).suffixes
        elif library and word == "Rss:":
            pages += 1024 * int(rest[0])
    return pages


def memory_peak(device: torch.device) -> int | None:
    """The most that was held at once since `forget_peak` [bytes]; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak(device: torch.device) -> None:
    """Counts the peak from now on; where the system cannot do that, it stays the whole process's.

    What was freed before is returned: it would count as held.
    """
    gc.collect()
    return_freed()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        _RESET.write_text("5", encoding="ascii")  # 5: the high-water mark of resident memory

"""What a process does before it decodes at its speed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from specgym.env.kernels.build import compile_seconds
from specgym.env.tree.rounds import Stopwatch

_Result = TypeVar("_Result")

_PROCESS, _SYSTEM = Path("/proc/self/stat"), Path("/proc/uptime")
_STARTED = 19  # of the fields behind the process's name


@dataclass(frozen=True)
class Startup:
    """The time until everything has been done that is done once [s]."""

    imports: float | None  # from the process's beginning to the command's: Python and libraries; None if unknown
    loading: float  # of both models, until their weights lie as they are read
    first_text: float  # the first one
    same_text: float  # the very same once more, by a process that has done it
    compiling: float | None  # of compiled functions, once for a machine and left out above; None if it has none

    @property
    def total(self) -> float:
        """Until a process decodes at its speed, on a machine that has compiled what is compiled [s]."""
        return (self.imports or 0.0) + self.loading + self.first_text - self.same_text


def without_compiling(work: Callable[[], _Result]) -> tuple[_Result, float]:
    """What work gives, and how long it took without what it compiled, which is done once for a machine [s]."""
    before, watch = compile_seconds() or 0.0, Stopwatch()
    result = work()
    return result, watch.lap() - ((compile_seconds() or 0.0) - before)


def process_age() -> float | None:
    """How long this process has been running [s]; None where the system does not tell."""
    try:
        fields = _PROCESS.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        uptime = float(_SYSTEM.read_text(encoding="ascii").split()[0])
        return max(uptime - int(fields[_STARTED]) / os.sysconf("SC_CLK_TCK"), 0.0)
    except (OSError, ValueError, IndexError, AttributeError):
        return None

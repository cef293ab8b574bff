"""C++ of our own, compiled by the system's compiler when it is first needed, which takes a while, and kept.

Whoever calls it has another way, slower and with nearly the same numbers, for machines without a compiler, without the
processor that the code is written for, or without a folder to write to. `SPECGYM_NATIVE=0` in the environment asks for
that.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

from specgym.env.common.errors import SpecGymError
from specgym.env.common.files import atomic_path, write_text
from specgym.env.common.home import cache_home

_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_PATIENCE = 120  # seconds that compiling may take
_SOURCES = tuple(sorted(Path(__file__).parents[1].rglob("*.cpp")))
_TOOK = ".seconds"  # of the file that says how long it took


@functools.cache
def find_library(source: Path) -> ctypes.CDLL | None:
    """The functions of a file of C++, or None if they are not wanted or this machine cannot have them."""
    if not _wanted():
        return None
    try:
        return load_library(source)
    except (OSError, SpecGymError, subprocess.SubprocessError):
        return None


def load_library(source: Path) -> ctypes.CDLL:
    """The functions of a file of C++.

    Raises:
        OSError: no compiler, or a library that cannot be loaded.
        SubprocessError: it cannot be compiled.
        FileWriteError: it cannot be written.
    """
    path = compiled_path(source)
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # not what was written: made anew
        path.unlink(missing_ok=True)
        return ctypes.CDLL(str(compiled_path(source)))


def compiled_path(source: Path) -> Path:
    """The library of a file of C++, compiled for this machine unless it is there; raises as `load_library` does."""
    compiler = _compiler()
    path = _place(source, compiler)
    if not path.exists():
        began = time.perf_counter()
        with atomic_path(path) as temporary:
            command = [compiler, *_FLAGS, "-o", str(temporary), str(source)]
            subprocess.run(command, check=True, capture_output=True, timeout=_PATIENCE)
        write_text(path.with_suffix(_TOOK), f"{time.perf_counter() - began:.3f}\n")
    return path


def compile_seconds() -> float | None:
    """How long it took this machine to compile what it has of this package's C++ [s]; None if it has nothing."""
    if not _wanted():
        return None
    try:
        paths = [_place(source, _compiler()).with_suffix(_TOOK) for source in _SOURCES]
        took = [float(path.read_text(encoding="ascii")) for path in paths if path.exists()]
    except (OSError, ValueError, SpecGymError):
        return None
    return sum(took) if took else None


def _compiler() -> str:
    found = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if found is None:
        raise FileNotFoundError(f"Expected a C++ compiler: none of {', '.join(_COMPILERS)} is there.")
    return found


def _place(source: Path, compiler: str) -> Path:
    """Where the library of a file stands, by all that it depends on."""
    texts = [path.read_bytes() for path in (source, *sorted(source.parent.glob("*.hpp")))]
    made_of = [*texts, " ".join([compiler, *_FLAGS]).encode(), _processor().encode()]
    name = hashlib.sha256(b"\0".join(made_of)).hexdigest()[:16]
    return cache_home() / "native" / f"{name}.so"


def _wanted() -> bool:
    return os.environ.get("SPECGYM_NATIVE") != "0"


def _processor() -> str:
    """What tells processors with different instructions apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))

"""Compiles this package's C++ with the system's compiler on first use, and keeps the libraries.

Every caller has another way, slower and with nearly the same numbers. That way is taken without a compiler, without a
processor that the code supports, without a folder to write to, and if the environment says `SPECGYM_NATIVE=0`.
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
from specgym.env.common.files import atomic_path, cache_home, write_text

_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_TIMEOUT = 120  # seconds that compiling may take
_SOURCES = tuple(sorted(Path(__file__).parents[1].rglob("*.cpp")))
_SECONDS = ".seconds"  # suffix of the file with the time that compiling took


@functools.cache
def find_library(source: Path) -> ctypes.CDLL | None:
    """Returns the library of a C++ file, or None if it is switched off or this machine cannot build it."""
    if os.environ.get("SPECGYM_NATIVE") == "0":
        return None
    try:
        return load_library(source)
    except (OSError, SpecGymError, subprocess.SubprocessError):
        return None


def load_library(source: Path) -> ctypes.CDLL:
    """Returns the library of a C++ file.

    Raises:
        OSError: there is no compiler, or the library cannot be loaded.
        SubprocessError: the file cannot be compiled.
        FileWriteError: the library cannot be written.
    """
    path = compiled_path(source)
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # the file is damaged: compile it again
        path.unlink(missing_ok=True)
        return ctypes.CDLL(str(compiled_path(source)))


def compiled_path(source: Path) -> Path:
    """Returns the library's file, which is compiled for this machine if needed. Raises as `load_library` does."""
    compiler = _compiler()
    path = _library_path(source, compiler)
    if not path.exists():
        began = time.perf_counter()
        with atomic_path(path) as temporary:
            command = [compiler, *_FLAGS, "-o", str(temporary), str(source)]
            subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT)
        write_text(path.with_suffix(_SECONDS), f"{time.perf_counter() - began:.3f}\n")
    return path


def compile_seconds() -> float | None:
    """Returns how long compiling this package's C++ took on this machine [s]; None if nothing is compiled."""
    if os.environ.get("SPECGYM_NATIVE") == "0":
        return None
    try:
        paths = [_library_path(source, _compiler()).with_suffix(_SECONDS) for source in _SOURCES]
        seconds = [float(path.read_text(encoding="ascii")) for path in paths if path.exists()]
    except (OSError, ValueError, SpecGymError):
        return None
    return sum(seconds) if seconds else None


def _compiler() -> str:
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise FileNotFoundError(f"Expected a C++ compiler: none of {', '.join(_COMPILERS)} is there.")
    return compiler


def _library_path(source: Path, compiler: str) -> Path:
    """Returns a file name that depends on everything that the library depends on."""
    texts = [path.read_bytes() for path in (source, *sorted(source.parent.glob("*.hpp")))]
    parts = [*texts, " ".join([compiler, *_FLAGS]).encode(), _processor().encode()]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    return cache_home() / "native" / f"{digest[:16]}.so"


def _processor() -> str:
    """Returns a text that differs for processors with different instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))

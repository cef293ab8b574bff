"""Compiles this package's C++ with the system's compiler on first use, and keeps the libraries.

Every caller has another way, slower and with nearly the same numbers. That way is taken without a compiler, without a
processor that the code supports, without a folder to write to, and if the environment says `SPECGYM_NATIVE=0`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import signal
import stat
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

from specgym.env.common.errors import SpecGymError
from specgym.env.common.files import FileWriteError, atomic_path, cache_home, write_text
from specgym.env.common.reading import file_digest, read_bounded

_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_TIMEOUT = 120  # seconds that compiling may take
_SOURCES = tuple(sorted(Path(__file__).parents[1].rglob("*.cpp")))
_SECONDS = ".seconds"  # suffix of the file with the time that compiling took
_DIGEST = ".sha256"  # suffix of the file with a library's checksum
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class CompilerError(SpecGymError):
    """A compiler fails or does not end."""


class UntrustedError(SpecGymError):
    """Other users could change a library that would be loaded."""


@functools.cache
def find_library(source: Path) -> ctypes.CDLL | None:
    """Returns the library of a C++ file, or None if it is switched off or this machine cannot build it.

    Warns:
        UserWarning: it cannot be built or loaded, and why. This is said once for each cache folder.
    """
    if os.environ.get("SPECGYM_NATIVE") == "0":
        return None
    try:
        return load_library(source)
    except (OSError, SpecGymError) as error:
        _say_once(f"{error}"[:500])
        return None


def load_library(source: Path) -> ctypes.CDLL:
    """Returns the library of a C++ file.

    Raises:
        CompilerError: the compiler fails or does not end.
        OSError: there is no compiler, or the library cannot be loaded.
        FileWriteError: the library cannot be written.
        UntrustedError: other users could change the library.
    """
    path = compiled_path(source)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise _unloadable(path.parent, f"{error}".removeprefix(f"{path}: ")) from error


def _unloadable(folder: Path, reason: str) -> OSError:
    return OSError(
        f"Compiled functions in {folder} cannot be loaded ({reason}). "
        "Let SPECGYM_HOME name a folder whose files may be executed."
    )


def compiled_path(source: Path) -> Path:
    """Returns the library's file, which is compiled for this machine if needed. Raises as `load_library` does.

    The file's SHA-256 is kept beside it. A file of other content, or one that another user could have changed, is
    compiled anew.
    """
    compiler = _compiler()
    path = _library_path(source, compiler)
    _claim(path.parent)
    if not _is_intact(path):
        began = time.perf_counter()
        with atomic_path(path) as temporary:
            _compile([compiler, *_FLAGS, "-o", str(temporary), str(source)])
            digest = file_digest(temporary)
        write_text(path.with_suffix(_DIGEST), digest)
        write_text(path.with_suffix(_SECONDS), f"{time.perf_counter() - began:.3f}\n")
    return path


def _claim(folder: Path) -> None:
    """Makes the folder of libraries, and makes sure that only this user can write to it.

    Raises:
        UntrustedError: it belongs to another user.
        OSError: it cannot be made, its mode cannot be changed, or its files may not be executed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    if not _is_own(status):
        raise UntrustedError(
            f"{folder} belongs to another user, so no compiled functions are loaded from it. "
            "Let SPECGYM_HOME name a folder of your own."
        )
    if status.st_mode & _OTHERS_WRITE:
        folder.chmod(0o700)
    if hasattr(os, "statvfs") and os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0):
        raise _unloadable(folder, "its file system allows no execution")


def _is_own(status: os.stat_result) -> bool:
    """Whether this user, or the system's administrator, owns a file. Systems without such owners own everything."""
    return not hasattr(os, "geteuid") or status.st_uid in (os.geteuid(), 0)


def _is_intact(path: Path) -> bool:
    """Whether a library and its digest are this user's files, and belong together."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        digest = path.with_suffix(_DIGEST)
        states = [place.lstat() for place in (path, digest)]
        if all(stat.S_ISREG(one.st_mode) and _is_own(one) and not one.st_mode & _OTHERS_WRITE for one in states):
            return file_digest(path) == read_bounded(digest, 64).decode("ascii")
    return False


def _compile(command: list[str]) -> None:
    """Runs the compiler. Its children end with it.

    Raises:
        CompilerError: it failed, or did not end in time, which is remembered.
    """
    # A group of its own, so that the compiler's children can be ended too.
    quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    process = subprocess.Popen(command, start_new_session=True, **quiet)
    try:
        status = process.wait(_TIMEOUT)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        write_text(_hanging(command[0]), "")
        raise _hanging_error(command[0]) from error
    if status:
        raise CompilerError(f"The compiler {command[0]} failed with status {status}.")


def _hanging_error(compiler: str) -> CompilerError:
    return CompilerError(
        f"The compiler {compiler} did not end within {_TIMEOUT} s and is not tried again. To try it again, remove "
        f"{_hanging(compiler)}."
    )


def _say_once(problem: str) -> None:
    """Warns that compiled functions are missing, unless this cache has a note that it was said."""
    note = cache_home() / "native" / f"{hashlib.sha256(problem.encode()).hexdigest()[:16]}.said"
    if note.exists():
        return
    with contextlib.suppress(FileWriteError):
        write_text(note, problem)
    warnings.warn(f"{problem} Decoding goes on without compiled functions, at about half the speed.", stacklevel=3)


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
    """Returns the first compiler that is there and has not been found to hang.

    Raises:
        CompilerError: all hang.
        FileNotFoundError: no compiler was found.
    """
    there = list(filter(None, map(shutil.which, _COMPILERS)))
    if not there:
        raise FileNotFoundError(f"Expected a C++ compiler: none of {', '.join(_COMPILERS)} is there.")
    compiler = next((path for path in there if not _hanging(path).exists()), None)
    if compiler is None:
        raise _hanging_error(there[0])
    return compiler


def _hanging(compiler: str) -> Path:
    """Returns the file that says that a compiler hangs. Another version of the compiler has another file."""
    program = Path(compiler).resolve()
    status = program.stat()
    facts = f"{program} {status.st_size} {status.st_mtime_ns}"
    return cache_home() / "native" / f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.hangs"


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

"""Files that one process writes, completely or not at all; the cache's folder, wheels from pip, and filled lines."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from specgym.env.common.errors import ParameterError, SpecGymError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


class FileWriteError(SpecGymError, OSError):
    """A file could not be written. A file that stood there before is unchanged."""


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and moves that file to `path` when the block succeeds.

    Args:
        path: the file to write; missing parent folders are made.

    Raises:
        FileWriteError: the file could not be written (disk full, no permission). The temporary file is removed, and a
            previous file at `path` is unchanged.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        raise _write_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _write_error(path: Path, error: Exception) -> FileWriteError:
    reason = getattr(error, "strerror", None) or str(error)
    return FileWriteError(
        f"Could not write {path}: {reason}. Free some space or choose another folder, then run the command again."
    )


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` atomically, in UTF-8. Raises `FileWriteError` as `atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def written_alone(path: Path) -> Iterator[None]:
    """Keeps all other processes that use this function for `path` out while the block runs.

    The lock is a file beside `path`, which is removed at the end. A killed process leaves the file, but not the lock.
    Where the system has no locks, nothing is kept out.

    Args:
        path: the file or folder that is written; missing parent folders are made.

    Raises:
        FileWriteError: another process writes it.
    """
    lock = path.absolute().with_name(f".{path.absolute().name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = _lock(lock)
    except BlockingIOError as error:
        raise FileWriteError(
            f"Another process writes {path}. Wait until it has ended or choose another path, then run this again."
        ) from error
    except OSError as error:
        raise _write_error(lock, error) from error
    try:
        yield
    finally:
        if handle is not None:
            lock.unlink(missing_ok=True)
            os.close(handle)


def _lock(lock: Path) -> int | None:
    """Opens and locks a file. None if the system has no locks. Raises `BlockingIOError` if another process has it."""
    while fcntl is not None:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), lock.stat()):
                return handle
            os.close(handle)  # its last owner has removed the file meanwhile: lock the next one
        except FileNotFoundError:
            os.close(handle)
        except BlockingIOError:
            os.close(handle)
            raise
        except OSError:  # a file system without locks
            os.close(handle)
            break
    return None


def check_writable(folder: Path) -> None:
    """Checks that files can be written to `folder`, so that a long run does not fail at its end.

    Raises:
        FileWriteError: they cannot.
    """
    write_text(folder / ".writable", "")
    (folder / ".writable").unlink(missing_ok=True)


def filled_lines(text: str) -> list[tuple[int, str]]:
    """Returns the lines of `text` that are not blank, each with its number from 1 on."""
    # Not splitlines(): a JSON string may hold line separators such as U+2028.
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def cache_home() -> Path:
    """Returns the folder for weights, prompts and compiled functions; it may not exist yet.

    The folder is `$SPECGYM_HOME`, or else `specgym` in the user's cache folder, `$XDG_CACHE_HOME` or `~/.cache`. A
    leading `~` is expanded. An empty variable counts as unset, and so does a relative `$XDG_CACHE_HOME`, as the XDG
    specification requires.

    Raises:
        ParameterError: the path needs the user's home folder, which cannot be found.
    """
    try:
        if chosen := os.environ.get("SPECGYM_HOME"):
            return Path(chosen).expanduser()
        shared = Path(os.environ.get("XDG_CACHE_HOME", "")).expanduser()
        return (shared if shared.is_absolute() else Path("~/.cache").expanduser()) / "specgym"
    except RuntimeError as error:
        raise ParameterError(
            f"Expected a home folder for the cache, but there is none ({error}). "
            "Set SPECGYM_HOME to the full path of a folder that you can write to."
        ) from error


def download_wheel(
    requirement: str, folder: Path, error: type[SpecGymError], remedy: str, timeout: float | None = None
) -> Path:
    """Downloads a wheel to `folder` with pip. Neither the wheel nor its dependencies are installed.

    Args:
        requirement: the package and its version, ``name==version``.
        folder: an empty folder.
        error: the error to raise if there is no pip, or pip cannot get the wheel.
        remedy: what the user can do about it; ends the message.
        timeout: longest time that pip may take; None for no limit [s].
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder.absolute()), requirement]
    command += [] if sys.stderr.isatty() else ["--quiet"]
    # pip's progress bar goes to standard error (2), since standard output is for results. pip runs in the new folder:
    # a file called pip.py in the user's own would run in its place.
    options: dict[str, Any] = {"cwd": folder, "stdout": 2, "stderr": subprocess.PIPE, "timeout": timeout}
    try:
        done = subprocess.run(command, encoding="utf-8", errors="replace", check=False, **options)
    except (OSError, subprocess.SubprocessError) as problem:
        raise error(f"pip could not download {requirement}: {problem}. {remedy}") from problem
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.splitlines() or ["it gave no reason."]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        if "No module named pip" in done.stderr:
            reason += f". Run `{shlex.quote(sys.executable)} -m ensurepip`."
        raise error(f"pip could not download {requirement}: {reason} {remedy}")
    return wheels[0]

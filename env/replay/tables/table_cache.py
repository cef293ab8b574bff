"""Arrays that take long to compute, kept in the cache between runs."""

from __future__ import annotations

import contextlib
import hashlib
import io
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from specgym.env import drafts, replay, tree
from specgym.env.common.files import FileWriteError, atomic_path, cache_home

CACHE_BYTES = 2 * 2**30
"""most that all tables in the cache take; the least recently used ones are removed first [bytes]"""

_SOURCES = {tree: "*.py", drafts: "*.py", replay: "t*/*.py"}  # folders with code that decides outcomes

_CHECKSUM = 32  # bytes at the beginning of a file, the SHA-256 of all others

Array = npt.NDArray[Any]


def table_key(*facts: object) -> str:
    """Returns a name for the arrays that follow from these facts and from the code that computes them."""
    return hashlib.sha256(repr((*facts, _code_version())).encode()).hexdigest()[:32]


def load_arrays(key: str) -> dict[str, Array] | None:
    """Returns the arrays of a key; None if the cache has none, or a damaged file."""
    path = _path(key)
    try:
        content = path.read_bytes()
        checksum, packed = content[:_CHECKSUM], content[_CHECKSUM:]
        if hashlib.sha256(packed).digest() != checksum:
            return None
        path.touch()
    except OSError:
        return None
    return dict(np.load(io.BytesIO(zlib.decompress(packed)), allow_pickle=False))


def save_arrays(key: str, arrays: dict[str, Array]) -> None:
    """Keeps arrays in the cache, and removes old ones beyond `CACHE_BYTES`. Without a writable cache, does nothing."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    packed = zlib.compress(buffer.getvalue(), 1)
    with contextlib.suppress(FileWriteError):
        with atomic_path(_path(key)) as temporary:
            temporary.write_bytes(hashlib.sha256(packed).digest() + packed)
        _remove_old()


def _path(key: str) -> Path:
    return cache_home() / "tables" / f"{key}.tables"


def _remove_old() -> None:
    files = []
    for path in (cache_home() / "tables").glob("*.tables"):
        with contextlib.suppress(OSError):  # another process may have removed it
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= CACHE_BYTES:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size


@cache
def _code_version() -> str:
    digest = hashlib.sha256(np.__version__.encode())
    for package, pattern in _SOURCES.items():
        for path in sorted(Path(str(package.__file__)).parent.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()

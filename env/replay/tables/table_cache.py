"""Arrays that take long to compute, kept in the cache between runs."""

from __future__ import annotations

import contextlib
import hashlib
import io
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from specgym.env import drafts, replay, tree
from specgym.env.common.files import FileWriteError, atomic_path, cache_home
from specgym.env.common.reading import WRONG_VALUES, read_bounded

CACHE_BYTES = 2 * 2**30
"""most that all tables in the cache take; the least recently used ones are removed first [bytes]"""

_SOURCES = {tree: "*.py", drafts: "*.py", replay: "t*/*.py"}  # folders with code that decides outcomes

_MOST_UNPACKED = 2**29  # of the arrays of a key [bytes]
_CHECKSUM = 32  # bytes at the beginning of a file, the SHA-256 of all others

Array = npt.NDArray[Any]


def table_key(*facts: object) -> str:
    """Returns a name for the arrays that follow from these facts and from the code that computes them."""
    return hashlib.sha256(repr((*facts, _code_version())).encode()).hexdigest()[:32]


def load_arrays(key: str) -> dict[str, Array] | None:
    """Returns the arrays of a key; None if the cache has none, or a damaged file."""
    path = _path(key)
    # A program that can write to the cache can also make a right checksum, so everything that is read may be wrong.
    with contextlib.suppress(OSError, MemoryError, zlib.error, zipfile.BadZipFile, *WRONG_VALUES):
        content = read_bounded(path, CACHE_BYTES)
        checksum, packed = content[:_CHECKSUM], content[_CHECKSUM:]
        if hashlib.sha256(packed).digest() == checksum:
            unpacker = zlib.decompressobj()
            unpacked = unpacker.decompress(packed, _MOST_UNPACKED)
            members = zipfile.ZipFile(io.BytesIO(unpacked)).infolist()
            if unpacker.eof and sum(member.file_size for member in members) <= len(unpacked):
                arrays = dict(np.load(io.BytesIO(unpacked), allow_pickle=False))
                path.touch()
                return arrays
    return None


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

"""Traces packed for shipping: a file of a half the size, unpacked once into the cache and memory-mapped from there."""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

from env.errors import TraceError
from env.files import FileWriteError, atomic_path
from env.home import cache_home

__all__ = ["PACKED", "pack_trace", "unpack_trace"]

PACKED = ".xz"
"""what packed traces end with"""

# Most of a trace are numbers of two bytes each, which say little about their neighbours' other byte.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 1, "pb": 1}]


def pack_trace(path: Path, packed: Path) -> None:
    """Packs a trace into the file `packed`, which any tool that knows .xz can unpack.

    Raises:
        FileWriteError: the file could not be written.
    """
    content = lzma.compress(path.read_bytes(), filters=_FILTERS)
    with atomic_path(packed) as temporary:
        temporary.write_bytes(content)


def unpack_trace(packed: Path) -> Path:
    """Where a packed trace lies unpacked: in the cache, by its checksum, so that another trace is another file.

    Raises:
        FileWriteError: the cache cannot be written.
        TraceError: the file is missing, cut short or no packed trace.
    """
    try:
        content = packed.read_bytes()
        checksum = hashlib.sha256(content).hexdigest()
        path = cache_home() / "traces" / f"{packed.with_suffix('').stem}-{checksum[:16]}.sgt"
        if not path.exists():
            unpacked = lzma.decompress(content)
            with atomic_path(path) as temporary:
                temporary.write_bytes(unpacked)
    except FileWriteError:
        raise
    except (OSError, lzma.LZMAError) as error:
        raise TraceError(
            f"Expected a packed trace at {packed}; it cannot be unpacked ({error}). Restore the file."
        ) from error
    return path

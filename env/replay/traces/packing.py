"""Traces packed for shipping: a file of half the size, unpacked once into the cache and memory-mapped from there.

A packed file is a sequence of .xz streams. The first holds the length of a JSON text and the text: the header and the
facts of all texts. Each further stream holds a column of all texts, packed with the filter that suits it: numbers of a
column resemble each other more than those of a text do. A row's log-probabilities only ever fall, so the differences of
their binary forms are kept.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import struct
from pathlib import Path

import numpy as np

from specgym.env.common.errors import TraceError
from specgym.env.common.files import FileWriteError, atomic_path, cache_home
from specgym.env.replay.traces.file import read_frames, trace_content
from specgym.env.replay.traces.records import Array, TraceHeader, columns_of, split

PACKED = ".xz"
"""suffix of packed traces"""

_LENGTH = struct.Struct("<Q")
# Bits of the byte before and of the place among eight bytes that the coder uses; for token ids the former tell more.
_CONTEXT = {"candidates": (3, 1)}


def pack_trace(path: Path, packed: Path) -> None:
    """Packs a trace into the file `packed`.

    Raises:
        FileWriteError: the file could not be written.
        TraceError: the trace cannot be read.
    """
    header, texts = read_frames(path)
    facts = json.dumps({"header": header, "texts": [each for each, _ in texts]}).encode()
    parts = [split(TraceHeader(**header), each, arrays) for each, arrays in texts]
    streams = [lzma.compress(_LENGTH.pack(len(facts)) + facts)]
    for name in parts[0]:
        column = np.concatenate([_differences(name, part[name]) for part in parts])
        width = min(column.itemsize * (column.shape[1] if column.ndim > 1 else 1), 8)  # bytes after which they resemble
        period = width.bit_length() - 1
        context, place = _CONTEXT.get(name, (0, period))
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": context, "lp": place, "pb": period}]
        streams.append(lzma.compress(column.tobytes(), filters=filters))
    with atomic_path(packed) as temporary:
        temporary.write_bytes(b"".join(streams))


def unpack_trace(packed: Path) -> Path:
    """Unpacks a packed trace into the cache, if that has not been done, and returns the path.

    The checksum is part of the file's name, so another trace has another file.

    Raises:
        FileWriteError: the cache cannot be written.
        TraceError: the file is missing, truncated or no packed trace.
    """
    try:
        content = packed.read_bytes()
        checksum = hashlib.sha256(content).hexdigest()
        path = cache_home() / "traces" / f"{packed.with_suffix('').stem}-{checksum[:16]}.sgt"
        if not path.exists():
            unpacked = _unpacked(memoryview(lzma.decompress(content)))
            with atomic_path(path) as temporary:
                temporary.write_bytes(unpacked)
    except FileWriteError:
        raise
    except (OSError, lzma.LZMAError, struct.error, KeyError, TypeError, ValueError) as error:
        raise TraceError(
            f"Expected a packed trace at {packed}; it cannot be unpacked ({error}). Restore the file."
        ) from error
    return path


def _unpacked(content: memoryview) -> bytes:
    """Returns the content of the trace file. Raises `ValueError` and others for anything else."""
    start = _LENGTH.size
    end = start + _LENGTH.unpack(content[:start])[0]
    facts = json.loads(bytes(content[start:end]))
    layouts = [columns_of(TraceHeader(**facts["header"]), text) for text in facts["texts"]]
    texts: list[list[bytes]] = [[] for _ in layouts]
    for name in layouts[0]:
        for text, layout in zip(texts, layouts, strict=True):
            kind, shape = layout[name]
            start, end = end, end + int(np.prod(shape)) * np.dtype(kind).itemsize
            text.append(_sums(name, np.frombuffer(content[start:end], kind).reshape(shape)).tobytes())
    if end != len(content):
        raise ValueError("it is longer than it says")
    arrays = [b"".join(text) for text in texts]
    return trace_content(facts["header"], zip(facts["texts"], arrays, strict=True))


def _differences(name: str, column: Array) -> Array:
    """The column; for log-probabilities the difference of each from the one before, as binary forms."""
    if name != "log_probs":
        return column
    bits = column.view("<u2")
    return np.diff(bits, axis=1, prepend=np.zeros((len(bits), 1), "<u2"))


def _sums(name: str, column: Array) -> Array:
    """The column that `_differences` was given."""
    return np.cumsum(column.view("<u2"), axis=1, dtype="<u2") if name == "log_probs" else column

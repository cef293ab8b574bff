"""Traces packed for shipping: a file of half the size, unpacked once into the cache and memory-mapped from there.

A packed file is several .xz streams one after the other: the length of what is said in JSON (header and facts of all
texts), the JSON, and then every column of all texts together, each in a stream with the filter that suits it. Numbers
of a column resemble each other more than those of a text do. Of a row's log-probabilities, which only ever fall, the
differences of their binary forms are kept.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import struct
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from specgym.env.common.errors import TraceError
from specgym.env.common.files import FileWriteError, atomic_path
from specgym.env.common.home import cache_home
from specgym.env.replay.traces.file import read_frames, trace_content
from specgym.env.replay.traces.records import Array, TraceHeader, columns_of, split

PACKED = ".xz"
"""what packed traces end with"""

_LENGTH = struct.Struct("<Q")
# Of token ids the byte before tells more than which of eight bytes it is: bits of both that the coder goes by.
_CONTEXT = {"candidates": (3, 1)}


def pack_trace(path: Path, packed: Path) -> None:
    """Packs a trace into the file `packed`.

    Raises:
        FileWriteError: the file could not be written.
        TraceError: the trace cannot be read.
    """
    header, texts = read_frames(path)
    said = json.dumps({"header": header, "texts": [facts for facts, _ in texts]}).encode()
    parts = [split(_header(header), facts, arrays) for facts, arrays in texts]
    streams = [lzma.compress(_LENGTH.pack(len(said)) + said)]
    for name in parts[0]:
        column = np.concatenate([_close(name, part[name]) for part in parts])
        width = min(column.itemsize * (column.shape[1] if column.ndim > 1 else 1), 8)  # bytes after which they resemble
        period = width.bit_length() - 1
        context, place = _CONTEXT.get(name, (0, period))
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": context, "lp": place, "pb": period}]
        streams.append(lzma.compress(column.tobytes(), filters=filters))
    with atomic_path(packed) as temporary:
        temporary.write_bytes(b"".join(streams))


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
    """The trace's own file. Raises `ValueError` and others for what is none."""
    start = _LENGTH.size
    end = start + _LENGTH.unpack(content[:start])[0]
    said = json.loads(bytes(content[start:end]))
    layouts = [columns_of(_header(said["header"]), facts) for facts in said["texts"]]
    texts: list[list[bytes]] = [[] for _ in layouts]
    for name in layouts[0]:
        for text, layout in zip(texts, layouts, strict=True):
            kind, shape = layout[name]
            start, end = end, end + int(np.prod(shape)) * np.dtype(kind).itemsize
            text.append(_apart(name, np.frombuffer(content[start:end], kind).reshape(shape)).tobytes())
    if end != len(content):
        raise ValueError("it is longer than it says")
    arrays = [b"".join(text) for text in texts]
    return trace_content(said["header"], zip(said["texts"], arrays, strict=True))


def _close(name: str, column: Array) -> Array:
    """The column, or for log-probabilities each one's difference from the one before, as binary forms."""
    if name != "log_probs":
        return column
    bits = column.view("<u2")
    return np.diff(bits, axis=1, prepend=np.zeros((len(bits), 1), "<u2"))


def _apart(name: str, column: Array) -> Array:
    """What `_close` was given."""
    return np.cumsum(column.view("<u2"), axis=1, dtype="<u2") if name == "log_probs" else column


def _header(facts: dict[str, Any]) -> TraceHeader:
    return TraceHeader(**{field.name: facts[field.name] for field in fields(TraceHeader)})

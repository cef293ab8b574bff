"""Traces packed for shipping: a file of half the size, unpacked once into the cache and memory-mapped from there.

A packed file is a sequence of .xz streams. The first holds the length of a JSON text and the text: the header and the
facts of all texts. Each further stream holds a column of all texts, packed with the filter that suits it: numbers of a
column resemble each other more than those of a text do. A row's log-probabilities only ever fall, so the differences of
their binary forms are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import math
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from specgym.env.common.errors import TraceError
from specgym.env.common.files import FileWriteError, atomic_path, cache_home, write_text
from specgym.env.common.reading import JSON_BYTES, WRONG_VALUES, file_digest, parse_json, read_bounded
from specgym.env.replay.traces.file import read_frames, trace_content
from specgym.env.replay.traces.records import Array, TraceHeader, columns_of, read_header, split

PACKED = ".xz"
"""suffix of packed traces"""

_LENGTH = struct.Struct("<Q")
_MOST_PACKED = 2**30  # of a packed file [bytes]
# Of the arrays of an unpacked trace [bytes]; recordings unpack to three times their packed size.
_MOST_UNPACKED, _MOST_RATIO = 2**28, 8
_UNPACKER_BYTES = 2**27  # working memory of one stream, twice what the strongest setting takes
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

    The packed file's checksum is part of the file's name, so another trace has another file. The unpacked file's own
    checksum lies beside it; a damaged file is unpacked anew.

    Raises:
        FileWriteError: the cache cannot be written.
        TraceError: the file is missing, truncated or no packed trace.
    """
    try:
        content = read_bounded(packed, _MOST_PACKED)
        checksum = hashlib.sha256(content).hexdigest()
        path = cache_home() / "traces" / f"{packed.with_suffix('').stem}-{checksum[:16]}.sgt"
        digest = path.with_suffix(".sha256")
        with contextlib.suppress(OSError, ValueError):  # not unpacked yet, or damaged: unpacked anew
            if file_digest(path) == read_bounded(digest, 64).decode("ascii"):
                return path
        with atomic_path(path) as temporary:
            temporary.write_bytes(_unpacked(content))
            unpacked = file_digest(temporary)
        write_text(digest, unpacked)
    except FileWriteError:
        raise
    except (OSError, lzma.LZMAError, EOFError, struct.error, *WRONG_VALUES) as error:
        raise TraceError(
            f"Expected a packed trace at {packed}; it cannot be unpacked ({error}). Restore the file."
        ) from error
    return path


class _Streams:
    """The streams of a packed file, unpacked one by one up to a size that the caller knows.

    Args:
        content: the file.
    """

    def __init__(self, content: bytes) -> None:
        self.rest = content

    def read(self, most: int, *, exactly: bool = False) -> bytes:
        """Unpacks the next stream. Raises `ValueError` if it has more than `most` bytes, or not exactly so many."""
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_UNPACKER_BYTES)
        part = unpacker.decompress(self.rest, most + 1)
        if len(part) > most or not unpacker.eof or (exactly and len(part) < most):
            raise ValueError("a part of it is cut short, or has another length than it says")
        self.rest = unpacker.unused_data
        return part


def _unpacked(content: bytes) -> bytes:
    """Returns the content of the trace file. Raises `ValueError` and others for anything else."""
    streams = _Streams(content)
    first = streams.read(_LENGTH.size + JSON_BYTES)
    facts = parse_json(first[_LENGTH.size : _LENGTH.size + _LENGTH.unpack(first[: _LENGTH.size])[0]].decode("utf-8"))
    header = read_header(facts["header"])
    layouts = [columns_of(header, text) for text in facts["texts"]]
    sizes = [{name: _size(*column) for name, column in layout.items()} for layout in layouts]
    if not sizes or sum(sum(text.values()) for text in sizes) > max(_MOST_UNPACKED, _MOST_RATIO * len(content)):
        raise ValueError("it holds no text, or claims more numbers than such a file can hold")
    texts: list[list[bytes]] = [[] for _ in layouts]
    for name in layouts[0]:
        column, start = streams.read(sum(size[name] for size in sizes), exactly=True), 0
        for text, size, layout in zip(texts, sizes, layouts, strict=True):
            kind, shape = layout[name]
            part = column[start : start + size[name]]
            text.append(_sums(name, np.frombuffer(part, kind).reshape(shape)).tobytes())
            start += size[name]
    if streams.rest:
        raise ValueError("it is longer than it says")
    return trace_content(facts["header"], zip(facts["texts"], map(b"".join, texts), strict=True))


def _size(kind: npt.DTypeLike, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * np.dtype(kind).itemsize


def _differences(name: str, column: Array) -> Array:
    """The column; for log-probabilities the difference of each from the one before, as binary forms."""
    if name != "log_probs":
        return column
    bits = column.view("<u2")
    return np.diff(bits, axis=1, prepend=np.zeros((len(bits), 1), "<u2"))


def _sums(name: str, column: Array) -> Array:
    """The column that `_differences` was given."""
    return np.cumsum(column.view("<u2"), axis=1, dtype="<u2") if name == "log_probs" else column

"""Traces: texts of a target and what a draft would have guessed along them, in one append-only file.

The file is a magic line and frames, each of a kind, the lengths of its two parts, the CRC-32 of both, a part in JSON
(UTF-8) and a part of raw little-endian arrays, in the order of `columns_of`:

======== =========================================================================================================
HEAD     the first frame: what every text of the file has in common (`TraceHeader`); no arrays
TEXT     a text: its facts in JSON; ``tokens`` ``uint32[tokens]``, ``counts`` ``uint16[tokens - prompt]`` rows recorded
         at each position of the answer, and for the rows, position by position: ``parent`` ``uint16[rows]`` (row of the
         position that it is a candidate of, counted from 1; 0 for the root), ``rank`` ``uint8[rows]``, ``candidates``
         ``uint16 or uint32[rows, columns]`` (by the vocabulary's size), ``log_probs`` ``float16[rows, columns]`` and
         ``entropy`` ``float16[rows]``
======== =========================================================================================================

A frame that ends before it should is what an interrupted recording leaves: it is dropped with a warning. Anything else
that does not fit is an error that names the file.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from specgym.env.common.errors import TraceError
from specgym.env.common.files import atomic_path
from specgym.env.replay.traces.records import TraceHeader, TraceText, pack, unpack

_MAGIC = b"specgym trace 1\n"
_FRAME = struct.Struct("<4sIQI")


class Trace:
    """A trace that was read.

    Args:
        path: its file.
        header: what its texts have in common.
        texts: the texts.
    """

    def __init__(self, path: Path, header: TraceHeader, texts: Sequence[TraceText]) -> None:
        self.path, self.header, self.texts = path, header, texts


def read_trace(path: Path) -> Trace:
    """Reads a trace; guesses stay in the file until they are asked for.

    Warns:
        UserWarning: the last text was cut short and is left out.

    Raises:
        TraceError: the file is missing, corrupt, of another version, or holds no text.
    """
    header, texts, frames = _read(path)
    if frames.torn:
        warnings.warn(f"{path} ends within a text, which is left out: its recording was interrupted.", stacklevel=2)
    if not texts:
        raise TraceError(f"{path} holds no text. Record some with scripts.record.")
    return Trace(path, header, texts)


def read_frames(path: Path) -> tuple[dict[str, Any], list[tuple[dict[str, Any], memoryview]]]:
    """A trace's header, and facts and arrays of its texts, as they are stored. Raises as `read_trace` does."""
    header = read_trace(path).header
    (_, *texts) = _Frames(path, path.read_bytes())
    return asdict(header), [(facts, arrays) for _, facts, arrays in texts]


def trace_content(header: dict[str, Any], texts: Iterable[tuple[dict[str, Any], bytes]]) -> bytes:
    """The content of a file with what `read_frames` tells."""
    return _MAGIC + _frame(b"HEAD", header) + b"".join(_frame(b"TEXT", facts, arrays) for facts, arrays in texts)


class TraceWriter:
    """Writes texts to a trace, behind those that are there.

    Args:
        path: the file; made if it is not there.
        header: what its texts have in common.

    Attributes:
        keys: of the texts that are there, see `TraceText.key`.

    Warns:
        UserWarning: an interrupted recording left half a text, which is dropped.

    Raises:
        FileWriteError: the file cannot be made.
        TraceError: it is corrupt, or a trace of something else.
    """

    def __init__(self, path: Path, header: TraceHeader) -> None:
        self.path, self.header = path, header
        self.keys: set[tuple[Any, ...]] = set()
        if not path.exists():
            with atomic_path(path) as temporary:
                temporary.write_bytes(trace_content(asdict(header), []))
        else:
            self._go_on()
        self.file = path.open("ab")

    def _go_on(self) -> None:
        found, texts, frames = _read(self.path)
        if found != self.header:
            ours, theirs = asdict(self.header), asdict(found)
            differing = [name for name in ours if ours[name] != theirs[name]]
            expected, came = (", ".join(f"{name}={facts[name]}" for name in differing) for facts in (ours, theirs))
            raise TraceError(
                f"{self.path} is a trace of something else. Expected {expected}; got {came}. Choose another file, or "
                "the same settings."
            )
        self.keys = {text.key for text in texts}
        if frames.torn:
            warnings.warn(
                f"{self.path} ends within a text, which is dropped: its recording was interrupted.", stacklevel=3
            )
            os.truncate(self.path, frames.end)

    def write(self, text: TraceText) -> None:
        """Appends a text."""
        facts, arrays = pack(self.header, text)
        self.file.write(_frame(b"TEXT", facts, arrays))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.keys.add(text.key)

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.file.close()


def _read(path: Path) -> tuple[TraceHeader, list[TraceText], _Frames]:
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise TraceError(f"Expected a trace at {path}; it cannot be read ({error}).") from error
    frames = _Frames(path, data)
    try:
        rest = iter(frames)
        header = _header(path, rest)
        texts = [unpack(header, facts, arrays) for _, facts, arrays in rest]
    except (KeyError, TypeError, ValueError) as error:
        raise TraceError(f"{path} is corrupt or of another version ({error!r}). Record it again.") from error
    return header, texts, frames


def _header(path: Path, frames: Iterator[tuple[bytes, dict[str, Any], memoryview]]) -> TraceHeader:
    kind, facts, _ = next(frames, (b"", {}, memoryview(b"")))
    if kind != b"HEAD":
        raise TraceError(f"{path} is corrupt: expected its first frame to be a header. Record it again.")
    facts = facts | {name: tuple(facts[name]) for name in ("names", "context_limits", "end_tokens")}
    return TraceHeader(**facts)


def _frame(kind: bytes, facts: dict[str, Any], arrays: bytes = b"") -> bytes:
    said = json.dumps(facts).encode()
    return _FRAME.pack(kind, len(said), len(arrays), zlib.crc32(said + arrays)) + said + arrays


class _Frames:
    """The frames of a file, checked one by one.

    Args:
        path: the file.
        data: its bytes.
    """

    def __init__(self, path: Path, data: bytes | mmap.mmap) -> None:
        self.path, self.data = path, memoryview(data)
        self.end = len(_MAGIC)  # of the last whole frame
        if self.data[: self.end] != _MAGIC:
            raise TraceError(
                f"{path} is no trace: expected it to begin with {_MAGIC!r}, got {bytes(data[: self.end])!r}."
            )

    def __iter__(self) -> Iterator[tuple[bytes, dict[str, Any], memoryview]]:
        """Kind, JSON part and arrays of each whole frame. Raises `TraceError` at a corrupt one."""
        number = 0
        while (start := self.end + _FRAME.size) <= len(self.data):
            kind, said, arrays, checksum = _FRAME.unpack(self.data[self.end : start])
            end = start + said + arrays
            if end > len(self.data):
                return
            if zlib.crc32(self.data[start:end]) != checksum:
                raise TraceError(
                    f"{self.path} is corrupt: the checksum of frame {number} does not fit. Restore the file, or record "
                    "it again with scripts.record."
                )
            self.end, number = end, number + 1
            yield kind, json.loads(bytes(self.data[start : start + said])), self.data[start + said : end]

    @property
    def torn(self) -> int:
        """Bytes behind the last whole frame that was read."""
        return len(self.data) - self.end

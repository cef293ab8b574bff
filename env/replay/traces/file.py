"""Trace files: texts of a target and a draft's guesses along them, in one append-only file.

The file is a magic line and frames. A frame has a kind, the lengths of its two parts and the CRC-32 of both. The first
part is JSON (UTF-8), the second raw little-endian arrays in the order of `columns_of`. There are two kinds:

- HEAD is the first frame: facts that all texts share (`TraceHeader`), without arrays.
- TEXT is a text, its facts in JSON. The first arrays are ``tokens``, ``uint32[tokens]``, and ``counts``,
  ``uint16[tokens - prompt]``: the number of rows recorded at each position of the answer.

The other arrays of a TEXT hold the rows, position by position.

- ``parent``, ``uint16[rows]``: row that this one is a candidate of, counted from 1 within the position; 0 for the root;
- ``rank``, ``uint8[rows]``, and ``candidates``, ``uint16 or uint32[rows, columns]``, by the size of the vocabulary;
- ``log_probs``, ``float16[rows, columns]``, and ``entropy``, ``float16[rows]``.

An interrupted recording leaves an incomplete last frame, which is dropped with a warning. All other damage is an error
that names the file.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specgym.env.common.errors import TraceError
from specgym.env.common.files import FileWriteError, atomic_path, written_alone
from specgym.env.common.reading import JSON_BYTES, WRONG_VALUES, check_regular, parse_json
from specgym.env.replay.traces.records import TraceHeader, TraceText, pack, read_header, unpack

_MAGIC = b"specgym trace 1\n"
_FRAME = struct.Struct("<4sIQI")


class Trace:
    """A trace in memory.

    Args:
        path: its file.
        header: facts that its texts share.
        texts: the texts.
    """

    def __init__(self, path: Path, header: TraceHeader, texts: Sequence[TraceText]) -> None:
        self.path, self.header, self.texts = path, header, texts


def read_trace(path: Path) -> Trace:
    """Reads a trace; guesses stay in the file until they are needed.

    Warns:
        UserWarning: the last text was cut short and is left out.

    Raises:
        TraceError: the file is missing, corrupt, of another version, or holds no text.
    """
    header, texts, frames = _read(path)
    if frames.torn:
        warnings.warn(f"{path} ends within a text, which is left out: its recording was interrupted.", stacklevel=2)
    if not texts:
        raise TraceError(f"{path} holds no text. Record some with specgym record.")
    return Trace(path, header, texts)


def read_frames(path: Path) -> tuple[dict[str, Any], list[tuple[dict[str, Any], memoryview]]]:
    """Reads the header, and facts and arrays of the texts, as they are stored. Raises as `read_trace` does."""
    header = read_trace(path).header
    (_, *texts) = _Frames(path, _mapped(path))
    return asdict(header), [(facts, arrays) for _, facts, arrays in texts]


def trace_content(header: dict[str, Any], texts: Iterable[tuple[dict[str, Any], bytes]]) -> bytes:
    """Returns the content of a file for which `read_frames` returns these facts and arrays."""
    return _MAGIC + _frame(b"HEAD", header) + b"".join(_frame(b"TEXT", facts, arrays) for facts, arrays in texts)


class TraceWriter(AbstractContextManager["TraceWriter"]):
    """Appends texts to a trace.

    Args:
        path: the file; created if it does not exist.
        header: facts that its texts share.

    Attributes:
        keys: of the texts in the file, see `TraceText.key`.

    Warns:
        UserWarning: an interrupted recording left half a text, which is dropped.

    Raises:
        FileWriteError: the file cannot be created, or another process writes it.
        TraceError: the file is corrupt, or a trace with another header.
    """

    def __init__(self, path: Path, header: TraceHeader) -> None:
        self.path, self.header = path, header
        self.keys: set[tuple[Any, ...]] = set()
        with ExitStack() as stack:
            stack.enter_context(written_alone(path))  # before anything is read: no other recorder adds texts
            if not path.exists():
                with atomic_path(path) as temporary:
                    temporary.write_bytes(trace_content(asdict(header), []))
            else:
                self._continue()
            self.file = path.open("ab", buffering=0)
            self._lock = stack.pop_all()

    def _continue(self) -> None:
        header, texts, frames = _read(self.path)
        if header != self.header:
            ours, theirs = asdict(self.header), asdict(header)
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
        """Appends a text. Raises `FileWriteError` if it could not be written; the texts before it are kept."""
        facts, arrays = pack(self.header, text)
        frame = memoryview(_frame(b"TEXT", facts, arrays))
        try:
            while frame:
                frame = frame[self.file.write(frame) :]
            os.fsync(self.file.fileno())
        except OSError as error:
            raise FileWriteError(
                f"Could not write {self.path}: {error.strerror or error}. The texts before are kept. Free some space, "
                "then run the command again."
            ) from error
        self.keys.add(text.key)

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # what could not be written has raised before
            self.file.close()
        self._lock.close()


def _read(path: Path) -> tuple[TraceHeader, list[TraceText], _Frames]:
    frames = _Frames(path, _mapped(path))
    try:
        rest = iter(frames)
        kind, facts, _ = next(rest, (b"", {}, None))
        if kind != b"HEAD":
            raise TraceError(f"{path} is corrupt: expected its first frame to be a header. Record it again.")
        header = read_header(facts)
        texts = [unpack(header, facts, arrays, path) for _, facts, arrays in rest]
    except WRONG_VALUES as error:
        raise TraceError(f"{path} is corrupt or of another version ({error!r}). Record it again.") from error
    return header, texts, frames


def _mapped(path: Path) -> mmap.mmap:
    try:
        check_regular(path)
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise TraceError(f"Expected a trace at {path}; it cannot be read ({error}).") from error


def _frame(kind: bytes, facts: dict[str, Any], arrays: bytes = b"") -> bytes:
    text = json.dumps(facts).encode()
    return _FRAME.pack(kind, len(text), len(arrays), zlib.crc32(text + arrays)) + text + arrays


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
        """Yields kind, JSON part and arrays of each whole frame. Raises `TraceError` at a corrupt one."""
        number = 0
        while (start := self.end + _FRAME.size) <= len(self.data):
            kind, facts, arrays, checksum = _FRAME.unpack(self.data[self.end : start])
            end = start + facts + arrays
            if end > len(self.data):
                return
            if zlib.crc32(self.data[start:end]) != checksum:
                raise TraceError(
                    f"{self.path} is corrupt: the checksum of frame {number} does not fit. Restore the file, or record "
                    "it again with specgym record."
                )
            self.end, number = end, number + 1
            text = bytes(self.data[start : start + min(facts, JSON_BYTES)])
            yield kind, parse_json(text.decode("utf-8")), self.data[start + facts : end]

    @property
    def torn(self) -> int:
        """Number of bytes after the last whole frame that was read."""
        return len(self.data) - self.end

"""Reads files that others may have made: regular ones of bounded size, JSON that is neither deep nor infinite.

A stranger's file may claim anything. So its size is compared with a limit before it is read, a pipe or a device is
refused instead of waited for, and every number is finite.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

JSON_BYTES = 2**24
"""most that a JSON file may have; its values may take 30 times as much memory [bytes]"""
WRONG_VALUES = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)
"""what reading values raises if they are not as expected"""
_DEEPEST = 64  # levels of JSON
_DIGITS = 20  # of a whole number; 64 bits take 20
_CHUNK = 2**20  # bytes hashed at once


def read_bounded(path: Path, most: int = JSON_BYTES) -> bytes:
    """Returns the content of a regular file.

    Args:
        path: the file.
        most: the largest size that is read [bytes].

    Raises:
        OSError: there is no such file, it may not be read, it is a folder, pipe or device, or it is larger.
    """
    most = min(check_regular(path), most)  # memory is taken for what is asked for, not for what is there
    # A pipe that takes the file's place now is not waited for.
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:  # noqa: PTH123
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"expected a file of at most {most:,} bytes, got a larger one")
    return content


def check_regular(path: Path) -> int:
    """Returns the size of a regular file [bytes]. Raises `OSError` for a folder, pipe, device or missing file."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "expected a regular file, got a pipe, socket or device")
    return status.st_size


def read_json(path: Path, most: int = JSON_BYTES, *, finite: bool = True) -> Any:
    """Returns the values of a JSON file in UTF-8. Raises `OSError` as `read_bounded`, `ValueError` as `parse_json`."""
    return parse_json(read_bounded(path, most).decode("utf-8"), finite=finite)


def parse_json(text: str, *, finite: bool = True) -> Any:
    """Returns the values of a JSON text.

    Args:
        text: the text.
        finite: whether infinite numbers and NaN are refused.

    Raises:
        ValueError: the text is no JSON, is nested too deeply, or holds half a surrogate pair or a number that is not
            finite or has too many digits.
    """
    try:
        checks: dict[str, Any] = {"parse_constant": _refuse, "parse_float": _finite} if finite else {}
        value = json.loads(text, parse_int=_whole, **checks)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level = [value]
    for _ in range(_DEEPEST):
        inner = [node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list)]
        level = [part for parts in inner for part in parts if isinstance(part, dict | list)]
        if not level:
            break
    else:
        raise ValueError(f"it is nested deeper than {_DEEPEST} levels")
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode()  # half a pair cannot be encoded
    return value


def check_types(record: Mapping[str, Any], **expected: type | tuple[type, ...]) -> None:
    """Checks the types of entries. A truth value is no number, and a whole number counts as `float`.

    Raises:
        ValueError: an entry is missing, or of another type; the message names it.
    """
    for name, kinds in expected.items():
        allowed = kinds if isinstance(kinds, tuple) else (kinds,)
        came = type(record.get(name))
        if came not in allowed and not (came is int and float in allowed):
            names = " or ".join(kind.__name__ for kind in allowed)
            raise ValueError(f"expected {name} to be {names}, got {came.__name__ if name in record else 'nothing'}")


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a regular file, in hexadecimal. Raises `OSError`."""
    check_regular(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"expected finite numbers, got {name}")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text[:40])


def _whole(text: str) -> int:
    return int(text) if len(text) <= _DIGITS else _refuse(f"a number of {len(text)} digits")

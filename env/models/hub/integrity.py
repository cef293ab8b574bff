"""Compares files of cached models with the checksums that they were written with.

Hashing a model takes a second a gigabyte, so a check that succeeded is remembered. It is repeated when a file has
changed in size, times or place on the disk: a write to a file changes its times.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from specgym.env.common.errors import SpecGymError
from specgym.env.common.files import cache_home, write_text
from specgym.env.common.reading import file_digest, read_json

_SHA256 = re.compile("[0-9a-f]{64}")


def damaged_file(folder: Path, digests: Mapping[str, str]) -> str | None:
    """Returns the name of the first file whose content is not as it was written; None if all are right.

    Args:
        folder: the model's folder.
        digests: SHA-256 of files by their names, in hexadecimal.

    Raises:
        OSError: a file cannot be read.
    """
    place = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:32]
    stamp = cache_home() / "verified" / f"{place}.json"
    states = {name: _state(folder / name, digest) for name, digest in digests.items()}
    known = None
    with contextlib.suppress(OSError, ValueError):
        known = read_json(stamp)
    if known == states:
        return None
    for name, digest in digests.items():
        if file_digest(folder / name) != digest:
            return name
    with contextlib.suppress(SpecGymError):  # without a cache that can be written, the check is repeated
        write_text(stamp, json.dumps(states))
    return None


def hub_digests(folder: Path) -> dict[str, str]:
    """Returns the checksums of a snapshot's large files, by which the hub's cache names them."""
    links = {path.name: path.readlink().name for path in folder.iterdir() if path.is_symlink()}
    return {name: blob for name, blob in links.items() if _SHA256.fullmatch(blob)}


def _state(path: Path, digest: str) -> list[object]:
    status = path.stat()
    return [digest, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]

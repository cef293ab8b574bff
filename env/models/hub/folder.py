"""A model's folder in the cache: whole or not there at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specgym.env.common.errors import ModelFileError

MANIFEST = "specgym.json"

_CHUNK = 1 << 20  # bytes read at once


def check_complete(folder: Path) -> None:
    """Checks that a converted model is whole: its manifest is there and the weights have the recorded size.

    Raises:
        ModelFileError: it is not; the message names the file and the command that removes the folder.
    """
    remedy = f"Remove the folder with `rm -r {shlex.quote(str(folder))}` and run the command again."
    path = folder / MANIFEST
    try:
        weights = json.loads(path.read_text(encoding="utf-8"))["weights"]
        sizes = {name: int(entry["size"]) for name, entry in weights.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(
            f"{path} is missing or unreadable, so the model beside it may be half. {remedy}"
        ) from error
    for name, size in sizes.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if found != size:
            raise ModelFileError(f"{folder / name} has {found:,} bytes; expected {size:,}. {remedy}")


def remove_stale(destination: Path) -> None:
    """Removes the temporary folders for `destination` whose processes, all on this machine, are dead."""
    pattern = re.compile(re.escape(_temporary_prefix(destination)) + r"(\d+)-.*\.tmp")
    for folder in destination.parent.iterdir():
        match = pattern.fullmatch(folder.name)
        if match and not _is_alive(int(match[1])):
            shutil.rmtree(folder, ignore_errors=True)


def write_manifest(folder: Path, source: dict[str, Any]) -> None:
    """Records where a model came from, and the size and SHA-256 of its weight files.

    Args:
        folder: the model's folder.
        source: where it came from.
    """
    weights = {
        path.name: {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.glob("*.safetensors"))
    }
    text = json.dumps({"source": source, "weights": weights}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def publish(made: Path, destination: Path) -> None:
    """Renames a finished folder into place; if another process was faster, its folder stays.

    Raises:
        OSError: the folder cannot be renamed.
        ModelFileError: the other process left something that is not whole.
    """
    for path in made.iterdir():
        path.chmod(0o644)  # safetensors gives its files to their owner only; a cache may be shared
    try:
        made.replace(destination)
    except OSError:
        if not destination.exists():
            raise
        check_complete(destination)  # another process was faster


@contextlib.contextmanager
def temporary_folder(destination: Path) -> Iterator[Path]:
    """A folder beside `destination` for work in progress, gone at the end of the block."""
    prefix = f"{_temporary_prefix(destination)}{os.getpid()}-"
    folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=destination.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary_prefix(destination: Path) -> str:
    # A cache may be shared over a network, and a process number means something on its own machine only.
    machine = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    return f".{destination.name}.{machine}-"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # os.kill would end the process there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from specgym.env.common.errors import SpecGymError


class FileWriteError(SpecGymError, OSError):
    """A file that could not be written; whatever stood there before is untouched."""


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` and moves it into place when the block succeeds.

    Args:
        path: where the file shall stand; missing parent folders are made.

    Raises:
        FileWriteError: the file could not be written (disk full, no permission). The temporary file is gone and a
            previous file at `path` is as it was.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise FileWriteError(
            f"Could not write {path}: {reason}. Free some space or choose another folder, then run the command again."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` atomically, in UTF-8. Raises `FileWriteError` as `atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_writable(folder: Path) -> None:
    """Makes sure that files can be written to `folder`, before any work is done for them.

    Raises:
        FileWriteError: they cannot.
    """
    with atomic_path(folder / ".writable") as temporary:
        temporary.write_text("", encoding="utf-8")
    (folder / ".writable").unlink(missing_ok=True)

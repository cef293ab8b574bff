"""The rows of a benchmark on disk as they come, so that an interrupted benchmark continues where it stopped.

Each line is a checksum and JSON. The first line holds what decides the rows, every other line a measured prompt. A line
that was cut short, as by a full disk or a killed process, is dropped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from pathlib import Path
from typing import Any

from specgym.controllers.evaluation.live.paired_runs import Measurements
from specgym.controllers.evaluation.results.schema import Failure, PromptRow, decode
from specgym.env.common.errors import ParameterError
from specgym.env.common.files import FileWriteError, atomic_path

JOURNAL = "rows.jsonl"
"""name of the file in a benchmark's folder; it is removed once the results are complete"""


class Journal(Measurements):
    """The prompts of a benchmark that are measured, in memory and in a file.

    Args:
        path: the file; an unfinished benchmark found there is continued.
        plan: everything that decides the rows, as JSON values by name.
        started: when this process began, ISO 8601.

    Attributes:
        prompts: number of measured prompts; a prompt counts again in every repeat.
        started: when the benchmark began, which is earlier if it is continued.

    Raises:
        FileWriteError: the file cannot be written.
        ParameterError: the file holds a benchmark with another plan, or is corrupt.
    """

    def __init__(self, path: Path, plan: dict[str, Any], started: str) -> None:
        super().__init__()
        self.path, self.prompts, self.started = path, 0, started
        plan = json.loads(json.dumps(plan))
        if not path.exists():
            with atomic_path(path) as temporary:
                _append(temporary, _line({"plan": plan, "started": started}))
        head, *lines = self._read()
        self._check(head, plan)
        for line in lines:
            self._add(
                decode(list[PromptRow], line.get("rows"), "rows"),
                decode(list[Failure], line.get("failures"), "failures"),
            )

    def add(self, rows: list[PromptRow], failures: list[Failure]) -> None:
        """Adds a measured prompt. Raises `FileWriteError` if it could not be written; all others are kept."""
        entry = {"rows": list(map(dataclasses.asdict, rows)), "failures": list(map(dataclasses.asdict, failures))}
        try:
            _append(self.path, _line(entry))
        except OSError as error:
            raise FileWriteError(
                f"Could not write {self.path}: {error.strerror or error}. It keeps the {self.prompts} prompts measured "
                "before. Free some space and run the command again: it continues."
            ) from error
        self._add(rows, failures)

    def remove(self) -> None:
        """Removes the file: the results are complete."""
        self.path.unlink(missing_ok=True)

    def _add(self, rows: list[PromptRow], failures: list[Failure]) -> None:
        super().add(rows, failures)
        self.prompts += 1

    def _read(self) -> list[dict[str, Any]]:
        """Reads all whole lines and cuts off the rest of the file."""
        try:
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            lines = [_parse(line) for line in content[:whole].splitlines()]
            if not lines:
                raise ValueError("it has no whole line")
            os.truncate(self.path, whole)
        except (OSError, ValueError, RecursionError) as error:
            raise ParameterError(f"{self.path} cannot be continued: {error}. Delete it to start anew.") from error
        return lines

    def _check(self, head: dict[str, Any], plan: dict[str, Any]) -> None:
        before = head.get("plan")
        if not isinstance(before, dict) or not isinstance(head.get("started"), str):
            raise ParameterError(f"{self.path} is no benchmark's. Delete it, or choose another output folder.")
        self.started = head["started"]
        names = [name for name in {**before, **plan} if before.get(name) != plan.get(name)]
        if names:
            shown = "; ".join(
                f"{name} was {_short(before.get(name))}, now {_short(plan.get(name))}" for name in names[:3]
            )
            raise ParameterError(
                f"{self.path} holds an unfinished run of something else: {shown}. Repeat its command to continue it, "
                "choose another output folder, or delete the file to start anew."
            )


def _line(value: dict[str, Any]) -> bytes:
    text = json.dumps(value).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse(line: bytes) -> dict[str, Any]:
    checksum, _, text = line.partition(b" ")
    if int(checksum, 16) != zlib.crc32(text):
        raise ValueError("a checksum does not fit")
    return dict(json.loads(text))


def _append(path: Path, line: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        while line:
            line = line[file.write(line) :]
        os.fsync(file.fileno())


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""What is done and stays done: a folder of finished stages, each a file that appears at once or not at all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from specgym.controllers.evaluation.results.schema import PromptRow
from specgym.env.common.errors import ModelFileError, ParameterError
from specgym.env.common.files import write_text


class Stages:
    """Results of stages by name, kept from run to run.

    Args:
        folder: where they lie.
        settings: everything that decides them, as JSON can hold it.

    Raises:
        ParameterError: the folder holds stages of a study with other settings.
        FileWriteError: the settings could not be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        path, told = folder / "study.json", json.dumps(settings, indent=1, sort_keys=True) + "\n"
        if not path.exists():
            write_text(path, told)
        elif path.read_text(encoding="utf-8") != told:
            raise ParameterError(
                f"{folder} holds a study with other settings, texts or machines. Delete it to start anew, or choose "
                "another run folder."
            )

    def done(self, name: str) -> bool:
        """Whether a stage is finished."""
        return self._path(name).exists()

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of a stage, which is worked out if it is not there.

        Args:
            name: of the stage, with slashes for folders.
            work: gives the result, as JSON can hold it.

        Raises:
            ModelFileError: the file of a finished stage is corrupt.
            FileWriteError: the result could not be written.
        """
        path = self._path(name)
        if not path.exists():
            write_text(path, json.dumps(work(), allow_nan=False) + "\n")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelFileError(f"{path} is corrupt ({error}). Delete it and run the command again.") from error

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def rows_record(rows: Mapping[str, list[PromptRow]]) -> dict[str, Any]:
    """Rows by profile as JSON can hold them: a line of values a row."""
    names = [field.name for field in dataclasses.fields(PromptRow)]
    return {
        "names": names,
        "rows": {profile: [[getattr(row, name) for name in names] for row in found] for profile, found in rows.items()},
    }


def rows_from(record: Mapping[str, Any]) -> dict[str, list[PromptRow]]:
    """What `rows_record` told. Raises `ParameterError` for a row that cannot be."""
    names = record["names"]
    return {
        profile: [PromptRow(**dict(zip(names, row, strict=True))) for row in found]
        for profile, found in record["rows"].items()
    }

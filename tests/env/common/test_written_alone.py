"""Two writers of one file exclude each other, and a killed writer keeps nobody out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from specgym.env.common.files import FileWriteError, written_alone

HOLD = (
    "import sys, time; from pathlib import Path; from specgym.env.common.files import written_alone\n"
    "with written_alone(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
)


@pytest.mark.parametrize("name", ["trace.sgt", "run/folder"])
def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FileWriteError, match="Another process writes"), written_alone(path):
            pass
    finally:
        process.kill()
        process.wait()
    with written_alone(path):
        pass
    assert not list(path.parent.glob(".*.lock"))


def test_an_error_in_the_block_frees_the_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), written_alone(tmp_path / "some"):
        raise KeyboardInterrupt
    with written_alone(tmp_path / "some"):
        pass


def test_other_files_of_the_folder_are_free(tmp_path: Path) -> None:
    with written_alone(tmp_path / "one"), written_alone(tmp_path / "other"):
        pass

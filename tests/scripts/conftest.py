"""Models and a caller that the tests of the commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Caller, make_home
from tests.support.tiny_pair import TinyFolders, save_tiny_folders


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> TinyFolders:
    """The tiny models on disk."""
    return save_tiny_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Caller:
    """Runs commands in this process; nothing that they fetch or find is the user's."""
    monkeypatch.setenv("SPECGYM_HOME", str(make_home(tmp_path / "home")))
    return Caller(monkeypatch, capsys)

"""The trace and the profiles that the tests of learning share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_trace import save_tiny_world


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny trace, a machine whose rows cost nothing, and one whose rows cost a plain step."""
    return save_tiny_world(tmp_path_factory.mktemp("texts"))

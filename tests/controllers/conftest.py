"""Models that the tests of the evaluation share."""

from __future__ import annotations

from pathlib import Path

import pytest

from specgym.env.decoding.pair import ModelPair, load_pair
from tests.support.tiny_pair import TinyFolders, save_tiny_folders
from tests.support.tiny_trace import save_tiny_trace


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> TinyFolders:
    """The tiny models on disk."""
    return save_tiny_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def pair(folders: TinyFolders) -> ModelPair:
    """The tiny target and its causal draft."""
    return load_pair(str(folders.target), str(folders.draft), "float32")


@pytest.fixture(scope="session")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of twelve prompts of a tiny pair."""
    return save_tiny_trace(tmp_path_factory.mktemp("trace") / "tiny.sgt", prompts=12)

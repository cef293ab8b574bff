"""What holds for every test: no network, one thread, and properties that are not judged by their speed."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("specgym", deadline=None)
settings.load_profile("specgym")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those of the real pair first: they take longest, and would leave one worker alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("real_pair") is None)

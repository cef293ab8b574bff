"""What holds for every test: no network, one thread, and properties that are not judged by their speed."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("specgym", deadline=None)
settings.load_profile("specgym")

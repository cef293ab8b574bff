"""How far the training of a draft is, kept beside its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from specgym.env.common import checkpoint
from specgym.env.common.errors import ModelFileError


@dataclass
class History:
    """How a training run went so far."""

    updates: int = 0
    """batches done"""
    losses: list[list[float]] = field(default_factory=list)
    """mean loss of each step, by batch; batches with fewer steps have shorter lists"""
    agreement: list[tuple[int, list[float]]] = field(default_factory=list)
    """batches done and then the held-out top-1 agreement by step"""


def save_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, history: History, settings: str
) -> None:
    """Writes a checkpoint, see `specgym.env.common.checkpoint.save_checkpoint`. Raises `FileWriteError`."""
    checkpoint.save_checkpoint(path, module, optimizer, vars(history), settings)


def load_checkpoint(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, settings: str) -> History:
    """The history in a checkpoint, whose weights and optimiser are taken over.

    Raises:
        ModelFileError, ParameterError: see `specgym.env.common.checkpoint.load_checkpoint`.
    """
    found = checkpoint.load_checkpoint(path, module, optimizer, settings)
    try:
        return History(found["updates"], found["losses"], [(at, shares) for at, shares in found["agreement"]])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path} is corrupt ({error}). Delete it and run the command again.") from error

"""A training run on disk: weights, optimiser and history in one file that appears at once or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from env.errors import ModelFileError, ParameterError
from env.files import atomic_path

__all__ = ["History", "load_checkpoint", "save_checkpoint"]


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
    """Writes a checkpoint atomically.

    Args:
        path: the file.
        module: what is trained.
        optimizer: AdamW over `module.parameters()`, in their order.
        history: how far it is.
        settings: everything that decides the run; a checkpoint of other settings is refused.

    Raises:
        FileWriteError: see `atomic_path`.
    """
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    notes = {"settings": settings, "history": json.dumps(vars(history))}
    # Tied weights share memory, which the format refuses: every tensor gets its own.
    with atomic_path(path) as temporary:
        save_file({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, temporary, notes)


def load_checkpoint(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, settings: str) -> History:
    """Puts `module` and `optimizer` into the state that `save_checkpoint` saw, and returns the history.

    Raises:
        ModelFileError: the file is corrupt.
        ParameterError: it belongs to a run with other settings.
    """
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if notes["settings"] == settings:
            return _restore(module, optimizer, tensors, json.loads(notes["history"]))
    except (SafetensorError, RuntimeError, TypeError, KeyError, ValueError, OSError) as error:
        raise ModelFileError(f"{path} is corrupt ({error}). Delete it and run the command again.") from error
    raise ParameterError(
        f"{path} belongs to a training run with other settings or other text. Delete it to start anew, or choose "
        "another run folder."
    )


def _restore(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], history: dict[str, Any]
) -> History:
    states: dict[int, dict[str, torch.Tensor]] = {}
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        owner, rest = name.split(".", 1)
        if owner == "module":
            weights[rest] = tensor
        else:
            index, field_name = rest.split(".")
            states.setdefault(int(index), {})[field_name] = tensor
    module.load_state_dict(weights)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": states})
    return History(history["updates"], history["losses"], [(at, shares) for at, shares in history["agreement"]])

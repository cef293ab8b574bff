"""Checkpoints of training runs: weights, optimiser and progress in one file, written completely or not at all."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from specgym.env.common.errors import ModelFileError, ParameterError
from specgym.env.common.files import atomic_path


def save_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, history: dict[str, Any], settings: str
) -> None:
    """Writes a checkpoint atomically.

    Args:
        path: the file.
        module: the trained module.
        optimizer: Adam or AdamW over `module.parameters()`, in their order.
        history: progress of the run, as JSON values.
        settings: everything that determines the run; a checkpoint of other settings is refused.

    Raises:
        FileWriteError: see `atomic_path`.
    """
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    notes = {"settings": settings, "history": json.dumps(history)}
    # The format refuses tensors that share memory, as tied weights do, so every tensor is copied.
    with atomic_path(path) as temporary:
        save_file({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, temporary, notes)


def load_checkpoint(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, settings: str) -> dict[str, Any]:
    """Restores the states of `module` and `optimizer`, and returns the history.

    Raises:
        ModelFileError: the file is corrupt.
        ParameterError: the file belongs to a run with other settings.
    """
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if notes["settings"] == settings:
            _restore(module, optimizer, tensors)
            return dict(json.loads(notes["history"]))
    except (SafetensorError, RuntimeError, TypeError, KeyError, ValueError, OSError) as error:
        raise ModelFileError(f"{path} is corrupt ({error}). Delete it and run the command again.") from error
    raise ParameterError(
        f"{path} belongs to a training run with other settings or other text. Delete it to start anew, or choose "
        "another run folder."
    )


def _restore(module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    weights: dict[str, torch.Tensor] = {}
    states: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        if key.startswith("module."):
            weights[key.removeprefix("module.")] = tensor
        else:
            _, index, name = key.split(".")
            states[int(index)][name] = tensor
    module.load_state_dict(weights)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": dict(states)})

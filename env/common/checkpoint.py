"""Checkpoints of training runs: weights, optimiser and progress in one file, with a checksum.

A file is written completely or not at all.
"""

from __future__ import annotations

import hashlib
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
from specgym.env.common.reading import WRONG_VALUES, check_regular, parse_json

_CHECKSUM = "sha256"  # the note with the checksum


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
    save_tensors(path, {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, notes)


def load_checkpoint(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, settings: str) -> dict[str, Any]:
    """Restores the states of `module` and `optimizer`, and returns the history.

    Raises:
        ModelFileError: the file is corrupt.
        ParameterError: the file belongs to a run with other settings.
    """
    tensors, notes = load_tensors(path)
    try:
        if notes["settings"] == settings:
            history = dict(parse_json(notes["history"]))
            _restore(module, optimizer, tensors)
            return history
    except (RuntimeError, *WRONG_VALUES) as error:
        raise _corrupt(path, error) from error
    raise ParameterError(
        f"{path} belongs to a training run with other settings or other text. Delete it to start anew, or choose "
        "another run folder."
    )


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], notes: dict[str, str]) -> None:
    """Writes tensors and notes with their checksum atomically. Raises `FileWriteError`."""
    with atomic_path(path) as temporary:
        write_sorted(tensors, temporary, notes | {_CHECKSUM: _digest(tensors, notes)})


def write_sorted(tensors: dict[str, torch.Tensor], path: Path, notes: dict[str, str]) -> None:
    """Writes tensors and notes, the notes sorted by name: the library's order differs from process to process."""
    save_file(tensors, path, notes)
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(text) == size:
            file.seek(8)
            file.write(text)


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Reads a file of `save_tensors`. Files of earlier versions have no checksum, and are not checked.

    Raises:
        ModelFileError: the file is corrupt. If it is deleted, the next run makes it again.
    """
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        checksum = notes.pop(_CHECKSUM, None)
        if checksum is not None and checksum != _digest(tensors, notes):
            raise ValueError("its checksum does not fit")
    except (SafetensorError, RuntimeError, OSError, *WRONG_VALUES) as error:
        raise _corrupt(path, error) from error
    return tensors, notes


def _corrupt(path: Path, error: Exception) -> ModelFileError:
    return ModelFileError(f"{path} is corrupt ({error}). Delete it and run the command again.")


def _digest(tensors: dict[str, torch.Tensor], notes: dict[str, str]) -> str:
    """Returns the SHA-256 of names, types, shapes and contents, in hexadecimal."""
    digest = hashlib.sha256(json.dumps(notes, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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

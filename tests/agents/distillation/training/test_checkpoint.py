"""A checkpoint restores every bit of a training run, and is never mistaken for another run's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from specgym.agents.distillation.training.trainer import History, load_history
from specgym.env.common.checkpoint import save_checkpoint
from specgym.env.common.errors import ModelFileError, ParameterError

HISTORY = History(7, [[0.1, 1 / 3], [2e-9]], [(3, [0.25, 0.125]), (7, [1.0])])


class Tied(nn.Module):
    """Weights, one of which is used under two names, and a buffer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.middle, self.head = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("token_ids", torch.randperm(5))


def make(seed: int, updates: int = 3) -> tuple[Tied, torch.optim.Optimizer]:
    module = Tied(seed)
    optimizer = torch.optim.AdamW(module.parameters(), 0.1)
    for update in range(updates):
        optimizer.zero_grad()
        module.head(module.middle(module.embedding(torch.tensor([update])))).square().sum().backward()
        optimizer.step()
    return module, optimizer


def bits(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, list[object]]:
    states = optimizer.state_dict()["state"]
    tensors = module.state_dict() | {f"{i} {name}": each for i, state in states.items() for name, each in state.items()}
    return {name: [tensor.dtype, *tensor.flatten().tolist()] for name, tensor in tensors.items()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "checkpoint.safetensors"
    save_checkpoint(path, *make(0), vars(HISTORY), "settings")
    return path


@pytest.mark.parametrize("updates", [0, 2])
def test_it_restores_everything_whatever_was_there(saved: Path, updates: int) -> None:
    module, optimizer = make(1, updates)
    assert bits(module, optimizer) != bits(*make(0))
    assert load_history(saved, module, optimizer, "settings") == HISTORY
    assert bits(module, optimizer) == bits(*make(0))
    assert module.head.weight is module.embedding.weight, "what is tied stays tied"


def test_it_can_be_saved_before_the_first_update(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "first", *make(0, 0), vars(History()), "settings")
    module, optimizer = make(1, 0)
    assert load_history(tmp_path / "first", module, optimizer, "settings") == History()
    assert bits(module, optimizer) == bits(*make(0, 0))


def test_one_of_other_settings_is_refused_and_left_alone(saved: Path) -> None:
    module, optimizer = make(1)
    before, content = bits(module, optimizer), saved.read_bytes()
    with pytest.raises(ParameterError, match=f"{saved} belongs to a training run with other settings"):
        load_history(saved, module, optimizer, "other settings")
    assert bits(module, optimizer) == before
    assert saved.read_bytes() == content


def without_notes(path: Path) -> None:
    save_file(load_file(path), path)


def of_another_shape(path: Path) -> None:
    module = Tied(0)
    module.middle = nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(module.parameters())
    save_checkpoint(path, module, optimizer, vars(HISTORY), "settings")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"{" * 999),
        without_notes,
        of_another_shape,
    ],
    ids=["truncated", "emptied", "scribbled", "without notes", "of another shape"],
)
def test_a_corrupt_one_is_named(saved: Path, damage: Callable[[Path], object]) -> None:
    damage(saved)
    with pytest.raises(ModelFileError, match=f"(?s){saved} is corrupt .* Delete it and run the command again"):
        load_history(saved, *make(1), "settings")

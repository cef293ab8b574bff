"""A policy on disk: weights in ``policy.safetensors``, and in ``policy.json`` all that it takes to understand them.

Nothing of it is code, so that a policy of a stranger can do no more than choose badly. What it reads and what its
choices stand for are told in full, and a policy that does not fit this version is refused with both sides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from specgym.agents.policies.action_forms import ActionForm, grid_of, make_form
from specgym.agents.policies.policy_network import PolicyNetwork, Weights, expected_shapes
from specgym.env.common.errors import ModelFileError, SpecGymError
from specgym.env.common.files import atomic_path, write_text
from specgym.env.gym.features import FEATURES, VERSION
from specgym.env.gym.grid import ParameterGrid

FORMAT = "specgym policy 1"
"""schema and version of ``policy.json``"""
SETTINGS, WEIGHTS = "policy.json", "policy.safetensors"
_REPAIR = "Fetch the policy again, or train one with python -m scripts.train."
_KEYS = ("format", "observation", "action", "architecture", "training", "sha256")
_MOST_UNITS, _MOST_LAYERS = 4096, 16  # of a file that asks for more, something is wrong


class PolicyError(ModelFileError):
    """A policy's file that is missing, corrupt, tampered with, or of another grid or version; the message names it."""


@dataclass(frozen=True)
class Architecture:
    """The shape of a policy's network."""

    hidden: tuple[int, ...] = (64, 64)
    """units of each layer, all followed by tanh"""
    memory: int = 0
    """units of a layer of long short-term memory before those; 0 for none"""


@dataclass(frozen=True)
class Policy:
    """A policy and what it is for."""

    grid: ParameterGrid
    """what actions stand for"""
    form: str
    """what its choices are, one of `specgym.agents.policies.action_forms.FORMS`"""
    observes_draft: bool
    """whether it reads the draft's opinion of the root"""
    architecture: Architecture
    """its network"""
    weights: Weights
    """its tensors, see `specgym.agents.policies.policy_network.expected_shapes`"""
    training: Mapping[str, Any] = field(default_factory=dict)
    """how it was trained: settings, seed, what it scored"""

    def __post_init__(self) -> None:
        found = {name: tensor.shape for name, tensor in self.weights.items()}
        if found != (expected := self._shapes()):
            raise PolicyError(f"Expected the tensors {expected}; got {found}.")
        for name, tensor in self.weights.items():
            if tensor.dtype != np.float32 or not np.isfinite(tensor).all():
                raise PolicyError(
                    f"Expected finite numbers of float32 in {name}; got {tensor.dtype}, or infinite ones."
                )

    @cached_property
    def acting(self) -> ActionForm:
        """What its choices are."""
        return make_form(self.form, self.grid)

    def network(self) -> PolicyNetwork:
        """The network, ready to act."""
        return PolicyNetwork(self.weights, self.acting.nvec)

    def observation(self) -> dict[str, Any]:
        """What it reads, see `observation_of`."""
        return observation_of(self.acting, self.observes_draft)

    def action(self) -> dict[str, Any]:
        """What its choices stand for: their form, and the values of the grid."""
        return {"form": self.form, "grid": self.grid.to_dict()}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        entries, heads = len(FEATURES) + len(self.acting.entries), int(self.acting.nvec.sum())
        return expected_shapes(entries, self.architecture.memory, self.architecture.hidden, heads)


def observation_of(form: ActionForm, observes_draft: bool) -> dict[str, Any]:
    """What a policy of this form reads in this version: that of the features, and the name of every entry."""
    names = [feature.name for feature in FEATURES] + list(form.entries)
    return {"version": VERSION, "names": names, "observes_draft": observes_draft}


def save_policy(policy: Policy, folder: Path) -> Path:
    """Writes both files to a folder and returns the path of ``policy.json``. Raises `FileWriteError`."""
    packed = save({name: np.ascontiguousarray(tensor) for name, tensor in policy.weights.items()})
    with atomic_path(folder / WEIGHTS) as temporary:
        temporary.write_bytes(packed)
    record = {
        "format": FORMAT,
        "observation": policy.observation(),
        "action": policy.action(),
        "architecture": asdict(policy.architecture),
        "training": dict(policy.training),
        "sha256": hashlib.sha256(packed).hexdigest(),
    }
    write_text(folder / SETTINGS, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return folder / SETTINGS


def load_policy(path: Path, grid: ParameterGrid | None = None) -> Policy:
    """Reads a policy and makes sure that it is what it says.

    Args:
        path: its folder, or the ``policy.json`` in it.
        grid: the grid that its actions must be of; its own if None.

    Raises:
        PolicyError: a file is missing, corrupt or not the one that was written, or the policy reads or chooses
            otherwise than this version, or on another grid.
    """
    path = path / SETTINGS if path.is_dir() else path
    record = _read_record(path)
    try:
        return _checked(record, _read_weights(path.with_name(WEIGHTS), record["sha256"]), grid)
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from error
    except (SpecGymError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise PolicyError(f"{path} is corrupt or of another version: {error}. {_REPAIR}") from error


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PolicyError(
            f"There is no policy to read at {path} ({error.strerror}). Expected a folder with {SETTINGS} and "
            f"{WEIGHTS}, or its {SETTINGS}. {_REPAIR}"
        ) from error
    except ValueError as error:
        raise PolicyError(f"{path} is corrupt: expected JSON, got text that is not ({error}). {_REPAIR}") from error
    found = record.get("format") if isinstance(record, dict) else type(record).__name__
    if found != FORMAT:
        raise PolicyError(f"{path} is no policy of this version: expected {FORMAT!r}, got {found!r}. {_REPAIR}")
    if set(record) != set(_KEYS):
        raise PolicyError(
            f"{path} is corrupt: expected the keys {', '.join(_KEYS)}; got {', '.join(record)}. {_REPAIR}"
        )
    return dict(record)


def _read_weights(path: Path, expected: str) -> Weights:
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise PolicyError(f"its weights cannot be read at {path} ({error.strerror}). {_REPAIR}") from error
    found = hashlib.sha256(packed).hexdigest()
    if found != expected:
        raise PolicyError(f"its weights are not those that it was saved with: expected sha256 {expected}, got {found}.")
    return dict(load(packed))


def _checked(record: Mapping[str, Any], weights: Weights, grid: ParameterGrid | None) -> Policy:
    """The policy of a record, if it reads and chooses as this version does."""
    own, seen = grid_of(record["action"]["form"], record["action"]["grid"]), record["observation"]
    shape = Architecture(tuple(record["architecture"]["hidden"]), record["architecture"]["memory"])
    units = [*shape.hidden, shape.memory]
    if len(units) > _MOST_LAYERS or not all(type(each) is int and 0 <= each <= _MOST_UNITS for each in units):
        raise PolicyError(f"expected layers of at most {_MOST_UNITS} units, {_MOST_LAYERS} of them; got {shape}.")
    form = make_form(record["action"]["form"], own)
    _check_same("observation", observation_of(form, seen["observes_draft"] is True), seen)
    if grid is not None:
        _check_same("grid", grid.to_dict(), own.to_dict())
    return Policy(own, record["action"]["form"], seen["observes_draft"], shape, weights, dict(record["training"]))


def _check_same(what: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    if dict(found) != dict(expected):
        raise PolicyError(
            f"the policy is for another {what}.\nExpected:\n{json.dumps(expected)}\n"
            f"Got:\n{json.dumps(found)}\n{_REPAIR}"
        )

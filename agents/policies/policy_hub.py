"""Pushes policies to the Hugging Face hub and fetches them: two files, neither of them code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import RepositoryNotFoundError

from specgym.agents.policies.policy_file import SETTINGS, WEIGHTS, PolicyError, load_policy
from specgym.env.common.errors import ParameterError, SpecGymError
from specgym.env.models.hub.store import HUB_ID, HUB_TIMEOUT


def check_pushable(name: str) -> None:
    """Checks, before training, that a policy can be pushed.

    Args:
        name: ``owner/name``.

    Raises:
        ParameterError: the name has another form, or nobody is logged in.
        PolicyError: the hub cannot be reached.
    """
    with _hub_errors(name):
        if huggingface_hub.get_token() is None:
            raise ParameterError(f"To push {name} to the hub, log in first, with `hf auth login`; nobody is logged in.")
        with suppress(RepositoryNotFoundError):  # pushing creates it
            huggingface_hub.HfApi().model_info(name, timeout=HUB_TIMEOUT)


def push_policy(folder: Path, name: str) -> str:
    """Loads a policy to check it, uploads it and returns its address.

    Args:
        folder: the policy's files.
        name: ``owner/name``, which is created if it does not exist.

    Raises:
        ParameterError: the name has another form.
        PolicyError: the policy cannot be used, or the hub refuses it.
    """
    with _hub_errors(name):
        load_policy(folder)
        api = huggingface_hub.HfApi()
        api.create_repo(name, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=[SETTINGS, WEIGHTS]))


def fetch_policy(name: str) -> Path:
    """Downloads a policy, or finds it in the hub's cache, and returns its folder.

    Args:
        name: ``owner/name``.

    Raises:
        ParameterError: the name has another form.
        PolicyError: the hub cannot be reached, or has no such policy.
    """
    with _hub_errors(name):
        paths = [huggingface_hub.hf_hub_download(name, file, etag_timeout=HUB_TIMEOUT) for file in (SETTINGS, WEIGHTS)]
        return Path(paths[0]).parent


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Refuses a name of another form, and raises `PolicyError` for any error of the network library."""
    if not HUB_ID.fullmatch(name):
        raise ParameterError(f"Expected the name of a policy on the hub, owner/name; got {name!r}.")
    try:
        yield
    except SpecGymError:
        raise
    except Exception as error:  # the network library's errors differ between versions
        raise PolicyError(
            f"The hub request for {name} failed ({error}). Check the network, the name and the login "
            "(`hf auth whoami`), or pass a policy by its folder."
        ) from error

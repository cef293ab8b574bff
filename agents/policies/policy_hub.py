"""Policies on the Hugging Face hub: two files to push, two files to fetch, none of them code."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import RepositoryNotFoundError

from specgym.agents.policies.policy_file import SETTINGS, WEIGHTS, PolicyError, load_policy
from specgym.env.common.errors import ParameterError
from specgym.env.models.hub.store import HUB_ID, HUB_TIMEOUT


def check_pushable(name: str) -> None:
    """Makes sure that a policy may be pushed, as far as can be told before there is one.

    Args:
        name: ``owner/name``.

    Raises:
        ParameterError: it is no name of that form, or nobody is logged in.
        PolicyError: the hub cannot be reached.
    """
    _check_name(name)
    if huggingface_hub.get_token() is None:
        raise ParameterError(f"To push {name} to the hub, log in first, with `hf auth login`; nobody is logged in.")
    try:
        huggingface_hub.HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except RepositoryNotFoundError:
        return  # it will be made
    except Exception as error:  # the network library's errors change from version to version
        raise PolicyError(_unreachable(name, error)) from error


def push_policy(folder: Path, name: str) -> str:
    """Uploads a policy, which is looked at first, and returns where it is then.

    Args:
        folder: with the policy's files.
        name: ``owner/name``, made if there is none.

    Raises:
        ParameterError: the name is none.
        PolicyError: the policy cannot be used, or the hub does not take it.
    """
    _check_name(name)
    load_policy(folder)
    try:
        api = huggingface_hub.HfApi()
        api.create_repo(name, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=[SETTINGS, WEIGHTS]))
    except Exception as error:
        raise PolicyError(_unreachable(name, error)) from error


def fetch_policy(name: str) -> Path:
    """The folder with a policy of the hub, from its cache if it is there.

    Args:
        name: ``owner/name``.

    Raises:
        ParameterError: the name is none.
        PolicyError: the hub cannot be reached, or has no such policy.
    """
    _check_name(name)
    try:
        found = [huggingface_hub.hf_hub_download(name, file, etag_timeout=HUB_TIMEOUT) for file in (SETTINGS, WEIGHTS)]
    except Exception as error:
        raise PolicyError(_unreachable(name, error)) from error
    return Path(found[0]).parent


def _check_name(name: str) -> None:
    if not HUB_ID.fullmatch(name):
        raise ParameterError(f"Expected the name of a policy on the hub, owner/name; got {name!r}.")


def _unreachable(name: str, error: Exception) -> str:
    return (
        f"The hub did not do what was asked for {name} ({error}). Check the network, the name and who is logged in "
        "(`hf auth whoami`), or pass a policy by its folder."
    )

"""The one folder in which SpecGym keeps what it has fetched."""

from __future__ import annotations

import os
from pathlib import Path

from specgym.env.common.errors import ParameterError


def cache_home() -> Path:
    """Returns the folder for weights, prompts and profiles; it need not exist yet.

    `$SPECGYM_HOME` names it. Without that it is `specgym` in the user's cache folder, which is `$XDG_CACHE_HOME` or
    `~/.cache`. A leading `~` is expanded; an empty variable counts as not set, and so does a relative
    `$XDG_CACHE_HOME`, as the XDG specification asks.

    Raises:
        ParameterError: the user's home folder, needed for a `~`, cannot be found.
    """
    try:
        if chosen := os.environ.get("SPECGYM_HOME"):
            return Path(chosen).expanduser()
        shared = Path(os.environ.get("XDG_CACHE_HOME", "")).expanduser()
        if not shared.is_absolute():
            shared = Path("~/.cache").expanduser()
        return shared / "specgym"
    except RuntimeError as error:
        raise ParameterError(
            f"Expected a home folder for the cache, but there is none ({error}). "
            "Set SPECGYM_HOME to the full path of a folder that you can write to."
        ) from error

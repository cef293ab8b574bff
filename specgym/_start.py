"""Lets a command that is interrupted while it is being imported end without a traceback: it has nothing to keep yet."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

_SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def _starts_command() -> bool:
    """Whether this process is `specgym NAME`, `python -m specgym.scripts.NAME` or `python -m scripts.NAME`."""
    program = str(getattr(sys, "argv", [""])[0])
    if program != "-m":
        return Path(program).name == "specgym"
    scripts = getattr(sys.modules.get("scripts"), "__file__", None)
    own = scripts is not None and Path(scripts).resolve().parent == _SCRIPTS
    return own or any(word.startswith("specgym.scripts.") for word in sys.orig_argv)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler and _starts_command():
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))  # until `scripts.common.main` begins

"""The command `specgym NAME …`."""

from __future__ import annotations

import runpy
import sys


def run_command() -> None:
    """Runs the script that the first argument names."""
    name = sys.argv.pop(1).replace("-", "_")
    runpy.run_module(f"specgym.scripts.{name}", run_name="__main__", alter_sys=True)

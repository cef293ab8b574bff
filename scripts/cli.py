"""The command `specgym NAME …`: every script by its name."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from specgym.env.common.errors import SpecGymError, UnknownNameError
from specgym.scripts.common import flush_output, main, prepare_streams, print_error

_SHARED = {"__init__", "cli", "common", "options", "paired", "progress", "signals"}  # modules that are no commands


def command_names() -> list[str]:
    """Names of all commands, as they are typed."""
    stems = (path.stem for path in Path(__file__).parent.glob("*.py"))
    return sorted(stem.replace("_", "-") for stem in stems if stem not in _SHARED)


def load_command(name: str) -> Callable[..., int]:
    """Imports the function of a command.

    Raises:
        UnknownNameError: there is no such command.
    """
    if name not in command_names():
        raise UnknownNameError("command", name, command_names())
    stem = name.replace("-", "_")
    command: Callable[..., int] = getattr(importlib.import_module(f"specgym.scripts.{stem}"), stem)
    return command


def run_command() -> NoReturn:
    """Runs the command that the first argument names, or lists all commands."""
    name, *arguments = sys.argv[1:] or ["--help"]
    prepare_streams()
    try:
        if name in ("-h", "--help"):
            print(_overview())
            flush_output()
            sys.exit()
        command = load_command(name.replace("_", "-"))
    except SpecGymError as error:
        print_error(error)
        sys.exit(2)
    main(command, arguments)


def _overview() -> str:
    """One line for each command. It is read from the file, since importing every script would take seconds."""
    lines = ["usage: specgym COMMAND [OPTIONS]", ""]
    for name in command_names():
        source = Path(__file__).with_name(f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
        lines.append(f"  {name:<17}{(ast.get_docstring(ast.parse(source)) or '').splitlines()[0]}")
    return "\n".join([*lines, "", "specgym COMMAND --help explains the options of a command."])

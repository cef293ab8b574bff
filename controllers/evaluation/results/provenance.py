"""Where numbers come from: the machine, the code, the libraries and the command.

What this module returns is published with the results, so nothing in it names a user, a host or a folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from specgym.controllers.evaluation.results.schema import Machine

_SOURCE_TREE = Path(__file__).resolve().parents[3]
_LIBRARIES = (
    "specgym",
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "gymnasium",
    "stable-baselines3",
    "safetensors",
    "accelerate",
    "gguf",
)
# From the widest on: Linux's flag, and what is said of it.
_VECTORS = {"avx512_bf16": ", AVX-512 BF16", "avx512f": ", AVX-512", "avx2": ", AVX2"}


def machine(device: str) -> Machine:
    """Describes this machine.

    Args:
        device: where the models run, as it shall be reported: "cpu" or the accelerator's name.
    """
    return Machine(
        cpu=_cpu_model(),
        cores=_usable_cores(),
        threads=torch.get_num_threads(),
        memory_gib=round(_memory_bytes() / 2**30, 1),
        device=device,
        platform=f"{platform.system()} {platform.machine()}",
    )


def run_facts(started: datetime.datetime, device: str) -> dict[str, Any]:
    """Everything about a run that results keep besides what it measured, as JSON can hold it.

    Args:
        started: when it began, in UTC.
        device: see `machine`.
    """
    return {
        "started_at": started.isoformat(timespec="seconds"),
        "command": command_line(),
        "git_revision": git_revision(),
        "versions": library_versions(),
        "machine": dataclasses.asdict(machine(device)),
    }


def git_revision(source_tree: Path = _SOURCE_TREE) -> str | None:
    """The commit that the source tree stands at, with "-dirty" if tracked files were modified.

    None without git, without a commit, or where the tree is not the root of a checkout of its own: an installed copy
    may well lie inside somebody else's repository.
    """
    top = _git(source_tree, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != source_tree.resolve():
        return None
    revision = _git(source_tree, "rev-parse", "--verify", "HEAD")
    if revision is None:
        return None
    return f"{revision}-dirty" if _git(source_tree, "status", "--porcelain", "--untracked-files=no") else revision


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can move a number; what is not installed is left out."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def command_line(argv: Sequence[str] | None = None, module: str | None = None) -> str:
    """The command that started this process, fit to be typed again and to be published.

    Args:
        argv: program and arguments; this process's by default.
        module: the module run with `python -m`; this process's by default.
    """
    program, *arguments = sys.argv if argv is None else argv
    if argv is None and module is None:
        module = _main_module()
    if module is not None:
        start = ["python", "-m", module]
    else:
        start = ["python", shareable(program)] if program.endswith(".py") else [Path(program).name]
    return shlex.join([*start, *(shareable(argument) for argument in arguments)])


def shareable(argument: str) -> str:
    """`argument` without this machine's folders: `/home/ann/specgym/runs/a` becomes `runs/a`, or `a` from elsewhere.

    Handles plain values, `--name=value` and values joined by commas; anything else stays as it is.
    """
    name, equals, value = argument.partition("=")
    if equals:
        return f"{shareable(name)}={shareable(value)}"
    if "," in argument and not any(character.isspace() for character in argument):
        return ",".join(shareable(part) for part in argument.split(","))
    path = Path(argument)
    if not path.is_absolute() and ".." not in path.parts and not argument.startswith("~"):
        return argument
    here = Path.cwd()
    resolved = Path(os.path.normpath(here / path))
    if resolved.is_relative_to(here) and not argument.startswith("~"):
        return str(resolved.relative_to(here))
    return resolved.name or "/"


def _main_module() -> str | None:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = getattr(spec, "name", None)
    return str(name).removesuffix(".__main__") if name else None


def _git(folder: Path, *arguments: str) -> str | None:
    # --no-optional-locks: reading the state must not disturb a git command that runs at the same time.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    return described_cpu(text) or platform.processor() or platform.machine()


def described_cpu(text: str) -> str:
    """The model's name and the widest vector instructions that count here; "" where the text names no model.

    Virtual machines give many processors one name, while a round takes much longer on some than on others.

    Args:
        text: what Linux keeps in ``/proc/cpuinfo``.
    """
    facts: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    flags = facts.get("flags", "").split()
    vectors = next((said for flag, said in _VECTORS.items() if flag in flags), "")
    return facts.get("model name", "") + vectors


def _usable_cores() -> int:
    # Not every system can tell which processors a process may use, and some Python versions lack the call.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0

"""Where numbers come from: the machine, the code, the libraries and the command.

What this module returns is published with the results, so nothing in it names a user, a host or a folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from specgym.controllers.evaluation.results.schema import Machine
from specgym.env.common.processes import usable_cores
from specgym.env.decoding.pair import ModelPair

_SOURCE_TREE = Path(__file__).resolve().parents[3]
# libraries that can change a number
_LIBS = "torch", "transformers", "numpy", "scipy", "gymnasium", "stable-baselines3", "safetensors", "accelerate", "gguf"
_VECTORS = {"avx512_bf16": "AVX-512 BF16", "avx512f": "AVX-512", "avx2": "AVX2"}  # by Linux's flag, widest first


def machine(device: str) -> Machine:
    """Describes this machine.

    Args:
        device: where the models run: "cpu" or the accelerator's name.
    """
    return Machine(
        cpu=_cpu_model(),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        memory_gib=round(memory_bytes() / 2**30, 1),
        device=device,
        platform=f"{platform.system()} {platform.machine()}",
    )


def typed_facts(started: datetime.datetime, device: str) -> dict[str, Any]:
    """Returns the facts about a run that records such as `Results` keep, as their keyword arguments.

    Args:
        started: when the run began, in UTC.
        device: see `machine`.
    """
    return {
        "started_at": started.isoformat(timespec="seconds"),
        "command": command_line(),
        "git_revision": git_revision(),
        "versions": library_versions(),
        "machine": machine(device),
    }


def run_facts(started: datetime.datetime, device: str) -> dict[str, Any]:
    """Returns the same facts as JSON can hold them."""
    return typed_facts(started, device) | {"machine": dataclasses.asdict(machine(device))}


def device_name(device: torch.device) -> str:
    """Returns the name of a device in results: the accelerator's name, else its type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def pair_facts(pair: ModelPair) -> dict[str, str]:
    """Describes a pair for results."""
    return {
        "target": shareable(pair.target_name),
        "target_weights": pair.weights,
        "draft": shareable(pair.draft_name),
        "draft_kind": pair.draft.kind,
    }


def git_revision(source_tree: Path = _SOURCE_TREE) -> str | None:
    """Returns the commit of the source tree, with "-dirty" if tracked files were modified.

    None without git, without a commit, or if the tree is not the root of its own checkout. An installed copy may lie
    inside another repository.
    """
    top, revision = (_git(source_tree, "rev-parse", *what) for what in (["--show-toplevel"], ["--verify", "HEAD"]))
    if top is None or revision is None or Path(top).resolve() != source_tree.resolve():
        return None
    return f"{revision}-dirty" if _git(source_tree, "status", "--porcelain", "--untracked-files=no") else revision


def library_versions() -> dict[str, str]:
    """Returns the versions of Python, SpecGym and the libraries that can change a number, as far as installed."""
    versions = {"python": platform.python_version()}
    for name in ("specgym", *_LIBS):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def command_line(argv: Sequence[str] | None = None, module: str | None = None) -> str:
    """Returns the command that started this process; it can be typed again and published.

    Args:
        argv: program and arguments; this process's by default.
        module: the module run with `python -m`; this process's by default.
    """
    if argv is None:
        argv, spec = sys.argv, getattr(sys.modules.get("__main__"), "__spec__", None)
        module = module or (spec and spec.name.removesuffix(".__main__"))
    program, *arguments = argv
    start = ["python", shareable(program)] if program.endswith(".py") else [Path(program).name]
    return shlex.join([*(["python", "-m", module] if module else start), *map(shareable, arguments)])


def shareable(argument: str) -> str:
    """Returns `argument` without this machine's folders: `/home/ann/specgym/runs/a` becomes `runs/a`, elsewhere `a`.

    It handles plain values, `--name=value` and values joined by commas; anything else stays as it is.
    """
    name, equals, value = argument.partition("=")
    if equals:
        return f"{shareable(name)}={shareable(value)}"
    if "," in argument and not any(character.isspace() for character in argument):
        return ",".join(shareable(part) for part in argument.split(","))
    path, here, of_home = Path(argument), Path.cwd(), argument.startswith("~")
    if not (path.is_absolute() or ".." in path.parts or of_home):
        return argument
    resolved = Path(os.path.normpath(here / path))
    inside = resolved.is_relative_to(here) and not of_home
    return str(resolved.relative_to(here)) if inside else resolved.name or "/"


def _git(folder: Path, *arguments: str) -> str | None:
    # --no-optional-locks: a git command that runs at the same time is not disturbed.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    return None


def _cpu_model() -> str:
    text = ""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return described_cpu(text) or platform.processor() or platform.machine()


def described_cpu(text: str) -> str:
    """Returns the model's name and its widest vector instructions; "" if the text names no model.

    Virtual machines give many processors one name, although a round takes much longer on some of them.

    Args:
        text: the contents of Linux's ``/proc/cpuinfo``.
    """
    facts = dict(re.findall(r"^(model name|flags)\s*:\s*(.*)$", text, re.MULTILINE)[::-1])  # the first of each counts
    flags = facts.get("flags", "").split()
    widest = [name for flag, name in _VECTORS.items() if flag in flags][:1]
    return ", ".join([facts.get("model name", ""), *widest])


def memory_bytes() -> int:
    """Returns the size of the machine's memory [bytes]; 0 where the system does not report it."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0

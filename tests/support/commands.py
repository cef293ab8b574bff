"""Calls a command within the test's process, which is cheap, or in a process of its own."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from specgym.env.common.files import cache_home
from specgym.scripts.cli import run_command
from specgym.scripts.progress import Stages

ROOT = Path(__file__).parents[2]
_COMPILED = cache_home() / "native"
_START = (  # a shell that starts things in the background lets them ignore Ctrl-C
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv[0] = 'specgym'; "
    "from specgym.scripts.cli import run_command; run_command()"
)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Caller:
    """Runs commands in this process, from the command line on."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def __call__(self, command: str, *arguments: object) -> Ended:
        self.monkeypatch.setattr(sys, "argv", ["specgym", command, *map(str, arguments)])
        self.monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # restored at the end
        self.capsys.readouterr()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        with pytest.raises(SystemExit) as ended:
            run_command()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        shown = self.capsys.readouterr()
        return Ended(int(ended.value.code or 0), shown.out, shown.err)

    def interrupted(
        self, stage: str, command: str, *arguments: object, after: int = 1, stop: signal.Signals = signal.SIGINT
    ) -> Ended:
        """Runs a command that gets a signal when a stage is updated for the `after`-th time."""
        update, updates = Stages.__call__, itertools.count(1)

        def press(stages: Stages, name: str, *done: float) -> None:
            update(stages, name, *done)
            if name.startswith(stage) and next(updates) == after:
                signal.raise_signal(stop)

        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        with self.monkeypatch.context() as patch:
            patch.setattr(Stages, "__call__", press)
            ended = self(command, *arguments)
        signal.signal(signal.SIGINT, before)
        assert next(updates) > after, "the test would be vacuous"
        return ended


def make_home(home: Path) -> Path:
    """Makes a folder for `SPECGYM_HOME` that shares only compiled code with the user's own."""
    compiled = home / "native"
    if not compiled.exists():
        _COMPILED.mkdir(parents=True, exist_ok=True)
        home.mkdir(parents=True, exist_ok=True)
        compiled.symlink_to(_COMPILED)
    return home


def start(command: str, *arguments: object, home: Path, **settings: str) -> subprocess.Popen[str]:
    """Starts a command in its own process, offline, with `home` as `SPECGYM_HOME`."""
    place = str(make_home(home))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "SPECGYM_HOME": place, "OMP_NUM_THREADS": "1"} | settings
    return subprocess.Popen(
        [sys.executable, "-c", _START, command, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], stop: signal.Signals | None = None) -> Ended:
    """Waits for a process, after sending it a signal if wanted."""
    if stop is not None:
        process.send_signal(stop)
    out, err = process.communicate(timeout=120)
    return Ended(process.returncode, out, err)


def wait_for_progress(process: subprocess.Popen[str], steps: int, done: int) -> None:
    """Reads the progress bar of a process on a terminal until it shows that so many steps are done."""
    assert process.stderr is not None
    shown = ""
    while letter := process.stderr.read(1):
        shown += letter
        if (count := re.search(rf"(\d+)/{steps}\b", shown)) and int(count[1]) >= done:
            return
        shown = "" if count else shown
    raise AssertionError(f"The run ended before it could be interrupted: {shown}")


def close_output(process: subprocess.Popen[str]) -> None:
    """Stops reading the standard output of a process, as `| head` does."""
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None


def assert_refused(ended: Ended, message: str) -> None:
    """Asserts that a command ended with one clear message and no traceback."""
    assert ended.status == 2
    assert ended.err.startswith("error: ")
    assert ended.err.count("error: ") == 1
    assert "Traceback" not in ended.err
    assert message in ended.err
    assert ended.out == ""


def write_prompts(path: Path, texts: Iterable[str]) -> Path:
    """A prompt file with one turn a prompt, of two categories."""
    records: list[dict[str, Any]] = [
        {"question_id": number, "category": f"kind {number % 2}", "turns": [text]} for number, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Lets every write past `size` bytes of a file fail, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

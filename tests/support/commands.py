"""Promises of `scripts`, and what their tests share: calling a command here, where it is cheap, or in a process."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from specgym.env.common.home import cache_home
from specgym.scripts.common import main

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "ablate": "AblateOptions",
    "benchmark": "BenchmarkOptions",
    "calibrate": "CalibrateOptions",
    "compare": "CompareOptions",
    "distill": "DistillOptions",
    "evaluate": "EvaluateOptions",
    "exactness": "ExactnessOptions",
    "generate": "GenerateOptions",
    "profile": "ProfileOptions",
    "recalibrate": "RecalibrateOptions",
    "record": "RecordOptions",
    "replay_speed": "ReplaySpeedOptions",
    "study": "StudyOptions",
    "train": "TrainOptions",
    "update_pages": "PagesOptions",
}
"""every command and the name of its options"""
_COMPILED = cache_home() / "native"
_START = (  # where a shell runs things in the background, Ctrl-C is ignored unless asked for
    "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
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
        module = importlib.import_module(f"scripts.{command}")
        self.monkeypatch.setattr(sys, "argv", [f"scripts/{command}.py", *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(getattr(module, COMMANDS[command]), getattr(module, command))
        shown = self.capsys.readouterr()
        return Ended(int(ended.value.code or 0), shown.out, shown.err)


def make_home(home: Path) -> Path:
    """A folder for `SPECGYM_HOME` with nothing of the user's but what was compiled: that is the same everywhere."""
    compiled = home / "native"
    if not compiled.exists():
        _COMPILED.mkdir(parents=True, exist_ok=True)
        home.mkdir(parents=True, exist_ok=True)
        compiled.symlink_to(_COMPILED)
    return home


def start(command: str, *arguments: object, home: Path, **settings: str) -> subprocess.Popen[str]:
    """Starts a command as a process of its own, offline, its models looked for in `home`."""
    place = str(make_home(home))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "SPECGYM_HOME": place, "OMP_NUM_THREADS": "1"} | settings
    return subprocess.Popen(
        [sys.executable, "-c", _START, f"scripts.{command}", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], interrupt: bool = False) -> Ended:
    """Waits for a process, after pressing Ctrl-C if wanted."""
    if interrupt:
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    return Ended(process.returncode, out, err)


def assert_refused(ended: Ended, message: str) -> None:
    """The command ended with one clear message, and without a traceback."""
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

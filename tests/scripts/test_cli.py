"""`specgym NAME` runs every script, explains itself at once, and loses no result when nobody reads what it prints."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from specgym.env.decoding.pair import DEFAULT_TARGET
from specgym.scripts import progress as progress_module
from specgym.scripts.cli import command_names, load_command
from specgym.scripts.options import TARGET
from specgym.scripts.progress import progress, waiting
from tests.support.commands import ROOT, Caller, assert_refused, finish, start, write_prompts
from tests.support.tiny_pair import TinyFolders

HEAVY = ("torch", "transformers", "stable_baselines3", "scipy", "matplotlib")
HELP_OF_ALL = """
import contextlib, io, json, sys
from specgym.scripts.cli import command_names, run_command
loaded = {}
for name in ["", *command_names()]:
    sys.argv = ["specgym", *filter(None, [name]), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        run_command()
    assert shown.getvalue().startswith("usage: specgym"), name
    loaded[name] = [module for module in HEAVY if module in sys.modules]
print(json.dumps(loaded))
"""


class TestHelp:
    def test_help_of_every_command_loads_no_model_library(self) -> None:
        code = f"HEAVY = {HEAVY}\n{HELP_OF_ALL}"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {name: [] for name in ["", *command_names()]}

    def test_every_script_is_listed_in_one_line(self, call: Caller) -> None:
        ended = call("--help")
        stems = {path.stem for path in (ROOT / "scripts").glob("*.py")}
        shared = {"__init__", "cli", "common", "options", "paired", "progress", "signals"}
        assert {name.replace("-", "_") for name in command_names()} == stems - shared
        for name in command_names():
            assert re.search(rf"^  {name} +[A-Z].{{,100}}\.$", ended.out, re.MULTILINE), name

    @pytest.mark.parametrize("command", command_names())
    def test_help_names_the_command_and_explains_every_option(self, call: Caller, command: str) -> None:
        ended = call(command, "--help")
        assert (ended.status, ended.err) == (0, "")
        assert ended.out.startswith(f"usage: specgym {command} ")
        assert load_command(command).__doc__

    def test_a_script_is_also_a_module_with_the_same_help(self, call: Caller) -> None:
        command = [sys.executable, "-m", "scripts.update_pages", "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        words = re.compile(r"[\w.-]*\w[\w.-]*")  # frames depend on the console
        assert words.findall(done.stdout) == words.findall(call("update-pages", "--help").out)

    def test_the_default_target_is_that_of_python(self) -> None:
        assert TARGET == DEFAULT_TARGET


class TestRefusals:
    def test_an_unknown_command_is_answered_with_the_closest(self, tmp_path: Path) -> None:
        """In a process of its own: its status and what it prints are those that a user gets."""
        ended = finish(start("benchmrk", home=tmp_path / "home"))
        assert_refused(ended, "Unknown command 'benchmrk'. Did you mean benchmark?")

    def test_an_unknown_option_is_refused(self, call: Caller) -> None:
        ended = call("generate", "hello", "--controler", "history")
        assert ended.status == 2
        assert "--controler" in ended.err
        assert "Traceback" not in ended.err


class TestOutput:
    def test_a_console_without_greek_letters_loses_no_result(
        self, folders: TinyFolders, call: Caller, tmp_path: Path
    ) -> None:
        prompts = write_prompts(tmp_path / "prompts.jsonl", ["hello"])
        pair = ["--target", folders.target, "--draft", "lookup", "--dtype", "float32"]
        few = ["--controllers", "fixed_tree", "--max-new-tokens", 4]
        written = io.BytesIO()
        stream = io.TextIOWrapper(written, encoding="ascii")
        with call.monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            ended = call("benchmark", *pair, *few, "--prompts", prompts, "--output", tmp_path / "out")
            stream.flush()
        assert ended.status == 0, ended.err
        shown = written.getvalue().decode("ascii")
        assert "fixed_tree" in shown
        assert "?" in shown, "the test would be vacuous"
        assert (tmp_path / "out" / "results.json").is_file()


class TestProgress:
    @pytest.fixture(autouse=True)
    @staticmethod
    def _often(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.02)

    def test_without_a_terminal_a_line_comes_now_and_then_and_at_the_end(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with progress() as stages:
            step = stages.counter("recording", 2000)
            for _ in range(1000):
                step("greedy")
            time.sleep(0.1)
            stages("recording", 2000, 2000)
        lines = capsys.readouterr().err.splitlines()
        assert any(re.fullmatch(r"recording, greedy: 1,000 of 2,000(, \d+ s left)?", line) for line in lines)
        assert lines[-1] == "recording: 2,000 of 2,000"

    def test_a_wait_says_what_it_waits_for(self, capsys: pytest.CaptureFixture[str]) -> None:
        with waiting("Loading"):
            time.sleep(0.1)
        assert "Loading …" in capsys.readouterr().err.splitlines()

    def test_short_work_prints_nothing(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(progress_module, "LINE_SECONDS", 60.0)
        with waiting("Loading"):
            pass
        assert capsys.readouterr().err == ""

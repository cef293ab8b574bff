"""`compare` measures the libraries that run, reports the reason for the others, and leaves out none."""

from __future__ import annotations

import re
import signal
import sys
import venv
from pathlib import Path

import pytest

from specgym.controllers.evaluation.peers.catalogue import PEERS
from specgym.controllers.evaluation.results.report import load_results
from specgym.scripts.signals import exit_status
from tests.support.commands import (
    Caller,
    assert_refused,
    close_output,
    finish,
    start,
    wait_for_progress,
    write_prompts,
)
from tests.support.tiny_pair import TinyFolders

TEXTS = ("hello", "2 + 2 = ", "abc abc")
FILES = {"results.json", "results.csv", "results.md", "comparison.png"}


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python in which nothing is installed."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return folder / "bin" / "python"


def arguments(folders: TinyFolders, prompts: Path, output: Path, *more: object) -> list[object]:
    pair = ["--target", folders.target, "--draft", folders.draft, "--dtype", "float32", "--threads", 1]
    return [*pair, "--prompts", prompts, "--output", output, "--max-new-tokens", 8, *more]


def test_peers_that_run_are_measured_and_the_others_told(
    folders: TinyFolders, call: Caller, bare_python: Path, tmp_path: Path
) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", TEXTS)
    more = ["--peers", "transformers-lookup,transformers-assisted,flashspec-lookup,llama.cpp-lookup"]
    more += ["--peers-python", bare_python, "--controllers", "history"]
    ended = call("compare", *arguments(folders, prompts, tmp_path / "out", *more))
    assert ended.status == 0
    results = load_results(tmp_path / "out" / "results.json")
    assert (results.kind, results.complete, results.baseline, results.failures) == ("compare", True, "goodput", [])
    running = ["autoregressive", "goodput", "history", "transformers", "transformers-lookup"]
    absent = ["transformers-assisted", "flashspec-lookup", "llama.cpp", "llama.cpp-lookup"]
    assert set(results.controllers) == {*running, *absent}
    for name in running:
        summary = results.controllers[name]
        assert summary.prompts == summary.identical_outputs == len(TEXTS)
        assert summary.speedup is not None
    facts = results.settings["peers"]
    assert all(results.controllers[name].prompts == 0 for name in absent)
    assert facts["transformers"]["reason"] is facts["transformers-lookup"]["reason"] is None
    assert "--assistant" in facts["transformers-assisted"]["reason"]
    assert "Run `pip install flashspec`" in facts["flashspec-lookup"]["reason"]
    assert "Run `pip install llama-cpp-python`" in facts["llama.cpp"]["reason"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    markdown = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in markdown for name in PEERS if name in facts)
    assert "is not installed" in markdown
    assert "goodput" in ended.out
    for name in ("results.json", "results.md", "results.csv"):
        assert str(tmp_path) not in (tmp_path / "out" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--peers", "transformer"], "Unknown peer 'transformer'. Did you mean transformers"),
        (["--controllers", "histroy"], "Unknown controller 'histroy'. Did you mean history"),
        (["--python", "flashspc=x"], "Unknown library 'flashspc'. Did you mean flashspec?"),
        (["--python", "flashspec"], "Expected interpreters as LIBRARY=PATH"),
        (["--peers-python", "nowhere"], "There is no interpreter nowhere for flashspec"),
        (["--assistant", "./nowhere"], "There is no folder nowhere"),
        (["--repeats", "0"], "repeats must be 1 or more; got 0."),
        (["--device", "cuda"], "The peers are compared on a CPU only"),
        (["--dtype", "int8"], "The peers have no weights like those of int8; compare in bfloat16 or float32."),
        (["--patience", "0"], "patience must be more than 0 s; got 0."),
        (["--temperature", "-1"], "temperature"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_setting_is_answered_before_any_work(
    call: Caller, folders: TinyFolders, tmp_path: Path, more: list[str], message: str
) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", TEXTS)
    assert_refused(call("compare", *arguments(folders, prompts, tmp_path / "out", *more)), message)
    assert not (tmp_path / "out").exists()


def test_neither_sigterm_nor_a_closed_pipe_loses_what_was_measured(
    folders: TinyFolders, bare_python: Path, tmp_path: Path
) -> None:
    """One process shows both: it is stopped, and then prints its table to a reader that has gone away."""
    prompts = write_prompts(tmp_path / "prompts.jsonl", [f"hello {number}" for number in range(500)])
    live = {"FORCE_COLOR": "1", "COLUMNS": "120", "TERM": "xterm"}  # else the progress is shown at the end only
    more = ["--peers", "llama.cpp", "--python", f"llama.cpp={bare_python}"]
    process = start("compare", *arguments(folders, prompts, tmp_path / "out", *more), home=tmp_path, **live)
    wait_for_progress(process, steps=1000, done=6)
    close_output(process)
    ended = finish(process, signal.SIGTERM)
    assert ended.status == exit_status(signal.SIGTERM) == 143
    assert not re.search("Traceback|BrokenPipe", ended.err)
    results = load_results(tmp_path / "out" / "results.json")
    assert not results.complete
    assert 4 <= len(results.rows) < 1000
    assert re.search("not installed", results.settings["peers"]["llama.cpp"]["reason"])
    assert sys.executable not in (tmp_path / "out" / "results.md").read_text(encoding="utf-8")

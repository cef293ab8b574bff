"""`profile` leaves an account that adds up, with where it comes from, or says why not."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from specgym import env
from specgym.controllers.evaluation.profiling.breakdown import Memory
from specgym.controllers.evaluation.profiling.operators import GROUPS
from specgym.controllers.evaluation.profiling.process import Startup, process_age, without_compiling
from specgym.controllers.evaluation.profiling.profiler import PARTS
from specgym.env.kernels.build import compiled_path, find_library
from tests.support.commands import Caller, assert_refused, finish, start
from tests.support.tiny_pair import TinyFolders

SMALL = ("--rows", 1, 8, 16, "--contexts", 64, "--repeats", 1, "--requests", 2)
FILES = {"results.json", "results.md", "breakdown.png"}


def arguments(folders: TinyFolders, output: Path, *more: object) -> list[object]:
    return ["--target", folders.target, "--draft", folders.draft, "--dtype", "float32", "--output", output, *more]


def load(output: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((output / "results.json").read_text(encoding="utf-8"))
    return record


def test_the_account_adds_up_and_says_what_it_was_measured_on(
    folders: TinyFolders, call: Caller, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    ended = call("profile", *arguments(folders, output, *SMALL))
    assert ended.status == 0, ended.err
    assert {path.name for path in output.iterdir()} == FILES
    account = load(output)
    assert account["complete"]
    assert account["kind"] == "profile"
    assert {"torch", "transformers", "python"} <= set(account["versions"])
    assert {"cpu", "threads", "device"} <= set(account["machine"])
    assert account["settings"]["target"] == "target"
    assert account["command"].split()[0] in ("python", "specgym")
    assert [(cell["context"], cell["rows"]) for cell in account["cells"]] == [(64, 1), (64, 8), (64, 16)]
    for cell in account["cells"]:
        assert cell["seconds"] == pytest.approx(sum(cell["parts"][part] for part in PARTS))
        for shares in cell["operators"].values():
            assert sum(shares[group] for group in GROUPS) == pytest.approx(1)
        assert cell["unknown"] == {}
        assert (cell["draft_floor"] is None) == (cell["rows"] == 1)
        assert cell["verify_floor"]["seconds"] > 0
    assert [(each["what"], each["rows"]) for each in account["ratios"]] == [
        *(("plain step", 1), ("verification", 16), ("draft level", 4))
    ]
    for each in account["ratios"]:
        assert each["ratio"] == pytest.approx(each["seconds"] / each["floor"]["seconds"])
    assert account["growth"]["requests"] == 2
    startup = Startup(**account["startup"])
    assert startup.loading > 0
    assert startup.first_text > 0
    assert startup.same_text > 0
    memory = Memory(**account["memory"])
    assert memory.weights > 0
    assert memory.states > 0
    if memory.peak is not None and memory.before is not None:
        assert memory.ratio is not None
        assert 0 <= (memory.libraries or 0) <= memory.peak - memory.before
    shown = (output / "results.md").read_text(encoding="utf-8")
    for text in (ended.out, shown):
        assert "Against the floor" in text
        assert "Operators of no group took 0.00 %" in text
        assert f"Start: {startup.total:.1f} s until it decodes at full speed" in text
    assert str(tmp_path) not in (output / "results.json").read_text(encoding="utf-8") + shown
    assert f"Written to {output}/" in ended.err


def test_memory_is_set_against_weights_and_caches_without_python_and_libraries() -> None:
    memory = Memory(before=100, peak=200, libraries=10, weights=50, states=10)
    assert memory.ratio == 1.5
    assert dataclasses.replace(memory, libraries=None).ratio == 100 / 60
    assert dataclasses.replace(memory, peak=None).ratio is None


def test_the_start_is_what_is_done_once_and_leaves_out_what_every_text_takes() -> None:
    startup = Startup(imports=3.0, loading=1.0, first_text=0.75, same_text=0.5, compiling=9.0)
    assert startup.total == 4.25
    assert dataclasses.replace(startup, imports=None).total == 1.25


def test_what_is_compiled_meanwhile_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPECGYM_HOME", str(tmp_path / "home"))
    source = Path(env.__file__).parent / "kernels" / "moving.cpp"
    if find_library(source) is None:
        pytest.skip("this machine compiles nothing")
    began = time.perf_counter()
    path, seconds = without_compiling(lambda: compiled_path(source))
    took = time.perf_counter() - began
    assert path.is_relative_to(tmp_path), "the test would be vacuous"
    assert seconds < took / 4
    _, again = without_compiling(lambda: time.sleep(0.05))
    assert again >= 0.05


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_process_knows_its_age() -> None:
    began = time.monotonic()
    module = "specgym.controllers.evaluation.profiling.process"
    code = f"import time; time.sleep(0.2); from {module} import process_age; print(process_age())"
    found = float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 0.15 < found < time.monotonic() - began + 0.05
    own = process_age()
    assert own is not None
    assert own > found


def test_a_pair_without_a_draft_model_has_an_account_too(folders: TinyFolders, call: Caller, tmp_path: Path) -> None:
    more = ["--draft", "lookup", "--rows", 1, 4, "--repeats", 1, "--requests", 1]
    assert call("profile", *arguments(folders, tmp_path / "out", *more)).status == 0
    account = load(tmp_path / "out")
    assert {cell["context"] for cell in account["cells"]} == {128}  # what fits of the usual ones
    assert [each["what"] for each in account["ratios"]] == ["plain step"]
    assert all(cell["draft_floor"] is None for cell in account["cells"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--repeats", "0"], "repeats must be 1 or more; got 0."),
        (["--requests", "0"], "requests must be 1 or more; got 0."),
        (["--threads", "0"], "threads must be 1 or more; got 0."),
        (["--rows", "0", "4"], "rows must be positive and ascend; got (0, 4)."),
        (["--rows", "8", "4"], "rows must be positive and ascend; got (8, 4)."),
        (["--contexts", "-5"], "contexts must be positive and ascend; got (-5,)."),
        (["--rows", "1", "--contexts", "64", "383"], "contexts must leave 6 tokens of the 384 that this pair reads"),
        (["--dtype", "float8"], "dtype must be one of"),
        (["--device", "nowhere"], "Device 'nowhere' is not available here"),
        (["--target", "./nowhere"], "There is no folder nowhere"),
        (["--output", "pyproject.toml"], "Could not write pyproject.toml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_setting_is_answered_by_name_and_nothing_is_written(
    folders: TinyFolders, call: Caller, tmp_path: Path, more: list[str], message: str
) -> None:
    assert_refused(call("profile", *arguments(folders, tmp_path / "out", *more)), message)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_ctrl_c_keeps_what_there_is(folders: TinyFolders, tmp_path: Path) -> None:
    """Timing would go on for ever; the interrupt leaves whole files that say that they are of a part."""
    output = tmp_path / "out"
    more = arguments(folders, output, "--rows", 1, 4, "--contexts", 64, "--repeats", 10**6, "--requests", 1)
    process = start("profile", *more, home=tmp_path / "home")
    while process.poll() is None and not (output / "results.json").exists():
        time.sleep(0.05)
    ended = finish(process, signal.SIGINT)
    assert ended.status == 130, ended.err
    assert "Traceback" not in ended.err
    assert "INCOMPLETE" in ended.out
    assert {path.name for path in output.iterdir()} == FILES
    account = load(output)
    assert not account["complete"]
    assert account["growth"] is None
    assert [(cell["rows"], cell["profiled"], cell["operators"]) for cell in account["cells"]] == [
        (1, 0, {}),
        (4, 0, {}),
    ]
    assert all(cell["rounds"] >= 3 for cell in account["cells"])

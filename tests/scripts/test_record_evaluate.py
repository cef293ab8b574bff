"""Recording and judging: a trace that can be gone on with, a ladder whose rungs are in order, and clear refusals."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from specgym.controllers.evaluation.results.report import load_results
from specgym.env.replay.sources import find_trace
from specgym.env.replay.traces.file import read_trace
from tests.support.commands import Caller, assert_refused, largest_file, write_prompts
from tests.support.tiny_pair import TinyFolders

SMALL = "dynamic_depth:base_depth=2:max_depth=3:early_stop=0.3"
SMALLER = "confidence:base_depth=1:max_depth=1"
TEXTS = [f"say {letter * 3} and {letter * 2} again" for letter in "abcdefghij"]


def recording(folders: TinyFolders, output: Path, prompts: Path, *more: object) -> list[object]:
    pair = ["--target", folders.target, "--draft", folders.draft, "--dtype", "float32"]
    return [
        *pair,
        "--output",
        output,
        "--prompts",
        prompts,
        "--max-new-tokens",
        12,
        "--floor",
        0.3,
        "--max-depth",
        3,
        *more,
    ]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "prompts.jsonl", TEXTS)


@pytest.fixture
def trace(folders: TinyFolders, call: Caller, tmp_path: Path, prompts: Path) -> Path:
    ended = call("record", *recording(folders, tmp_path / "tiny.sgt", prompts))
    assert ended.status == 0, ended.err
    return tmp_path / "tiny.sgt"


class TestRecord:
    def test_every_prompt_is_recorded_at_every_temperature(self, trace: Path) -> None:
        found = read_trace(trace)
        assert len(found.texts) == 2 * len(TEXTS)
        assert {text.split for text in found.texts} >= {"train", "test"}
        by_prompt: dict[str, set[str]] = {}
        for text in found.texts:
            by_prompt.setdefault(text.identifier, set()).add(text.split)
        assert all(len(splits) == 1 for splits in by_prompt.values()), "a prompt is in one split"
        assert found.header.names == ("target", "draft")

    def test_what_is_there_is_not_made_again_and_what_is_new_is_added(
        self, folders: TinyFolders, call: Caller, tmp_path: Path, prompts: Path, trace: Path
    ) -> None:
        before = trace.read_bytes()
        assert call("record", *recording(folders, trace, prompts)).status == 0
        assert trace.read_bytes() == before
        assert call("record", *recording(folders, trace, prompts, "--seeds", 0, 5)).status == 0
        assert trace.read_bytes().startswith(before)
        assert len(read_trace(trace).texts) == 3 * len(TEXTS)

    def test_a_packed_copy_is_the_same_trace(
        self, folders: TinyFolders, call: Caller, tmp_path: Path, prompts: Path, trace: Path
    ) -> None:
        packed = tmp_path / "tiny.sgt.xz"
        assert call("record", *recording(folders, trace, prompts, "--packed", packed)).status == 0
        assert packed.stat().st_size < trace.stat().st_size
        assert list(map(str, find_trace(packed).texts)) == list(map(str, read_trace(trace).texts))

    def test_an_interrupted_recording_ends_with_the_same_bytes(
        self, folders: TinyFolders, call: Caller, tmp_path: Path, prompts: Path
    ) -> None:
        """Texts of a batch are answered together, and their company decides the last bits of what is recorded."""
        whole, parts = ([*recording(folders, tmp_path / name, prompts), "--slots", 8] for name in ("a.sgt", "b.sgt"))
        assert call("record", *whole).status == 0
        for after, stop in ((3, signal.SIGTERM), (2, signal.SIGINT), (9, signal.SIGHUP)):
            assert call.interrupted("recording", "record", *parts, after=after, stop=stop).status == 128 + stop
        assert (tmp_path / "b.sgt.batch").exists(), "the test would be vacuous"
        assert call("record", *parts).status == 0
        assert (tmp_path / "b.sgt").read_bytes() == (tmp_path / "a.sgt").read_bytes()
        assert not (tmp_path / "b.sgt.batch").exists()

    def test_a_full_disk_keeps_the_texts_that_are_recorded(
        self, folders: TinyFolders, call: Caller, prompts: Path, trace: Path
    ) -> None:
        before = trace.read_bytes()
        trace.write_bytes(before[: len(before) // 2])
        with largest_file(len(before) - 100):
            ended = call("record", *recording(folders, trace, prompts))
        assert ended.status == 2
        assert ended.err.splitlines()[-1].startswith(
            f"error: Could not write {trace}: File too large. The texts before"
        )
        assert call("record", *recording(folders, trace, prompts)).status == 0
        assert len(read_trace(trace).texts) == 2 * len(TEXTS)

    def test_two_prompts_of_one_name_are_refused(
        self, folders: TinyFolders, call: Caller, tmp_path: Path, prompts: Path
    ) -> None:
        (tmp_path / "other").mkdir()
        other = write_prompts(tmp_path / "other" / prompts.name, ["hello"])
        ended = call("record", *recording(folders, tmp_path / "x.sgt", prompts, "--prompts", prompts, other))
        assert_refused(ended, "Two prompts are called prompts/0")

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--max-new-tokens", "0"], "max_new_tokens must be 1 or more; got 0."),
            (["--slots", "0"], "slots must be 1 or more; got 0."),
            (["--floor", "0"], "floor must be over 0 and at most 1; got 0.0."),
            (["--draft", "lookup"], "got a draft of kind 'lookup'"),
            (["--temperatures", "-1"], "temperature must be 0"),
            (["--packed", "trace.zip"], "packed must end with .xz; got trace.zip."),
            (["--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_a_wrong_setting_is_answered_by_name(
        self, folders: TinyFolders, call: Caller, prompts: Path, more: list[str], message: str
    ) -> None:
        output = prompts.with_name("x.sgt")
        assert_refused(call("record", *recording(folders, output, prompts, *more)), message)
        assert not output.exists()

    def test_a_trace_of_other_settings_is_not_added_to(
        self, folders: TinyFolders, call: Caller, prompts: Path, trace: Path
    ) -> None:
        before = trace.read_bytes()
        ended = call("record", *recording(folders, trace, prompts, "--floor", 0.2))
        assert_refused(ended, "is a trace of something else. Expected rule=")
        assert trace.read_bytes() == before


class TestEvaluate:
    def test_the_ladder_is_written_for_every_profile_and_temperature(
        self, call: Caller, tmp_path: Path, trace: Path
    ) -> None:
        more = ["--profiles", "overhead_bound", "compute_bound", "--controllers", f"{SMALL},{SMALLER}"]
        ended = call("evaluate", "--traces", trace, "--output", tmp_path / "out", "--static-texts", 2, *more)
        assert ended.status == 0, ended.err
        names = ["autoregressive", "best_static", SMALL, SMALLER, "myopic", "clairvoyant"]
        for profile in ("overhead_bound", "compute_bound"):
            for temperature in ("0", "1"):
                folder = tmp_path / "out" / f"{profile}-t{temperature}"
                results = load_results(folder / "results.json")
                assert results.kind == "evaluation"
                assert list(results.controllers) == names
                speeds = {name: summary.speedup or 0 for name, summary in results.controllers.items()}
                assert speeds["autoregressive"] == 1
                assert speeds["clairvoyant"] >= max(speeds.values())
                assert results.settings["best_static"]["base_depth"] >= 0
                assert {path.name for path in folder.iterdir()} >= {"results.md", "results.csv", "speedup.png"}
                assert str(tmp_path) not in json.dumps(results.settings)

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--split", "tests"], "Unknown split 'tests'. Did you mean test"),
            (["--controllers", "histroy"], "Unknown controller 'histroy'. Did you mean history"),
            (["--temperatures", "0.5"], "Expected recorded texts of split=test, temperature=0.5"),
            (["--profiles", "nowhere.json"], "nowhere.json"),
            (["--static-texts", "0"], "static_texts must be 1 or more; got 0."),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_a_wrong_setting_is_answered_by_name(
        self, call: Caller, trace: Path, more: list[str], message: str
    ) -> None:
        output = trace.with_name("out")
        assert_refused(call("evaluate", "--traces", trace, "--output", output, *more), message)
        assert not list(output.glob("*"))

    def test_a_controller_that_the_trace_does_not_cover_is_refused(self, call: Caller, trace: Path) -> None:
        ended = call(
            "evaluate",
            "--traces",
            trace,
            "--output",
            trace.with_name("out"),
            "--controllers",
            "history,dynamic_depth:max_branch=5",
        )
        assert ended.status == 2
        assert "4 candidates of a node were recorded; 5 are asked for" in ended.err

    def test_a_broken_trace_is_named(self, call: Caller, tmp_path: Path, trace: Path) -> None:
        content = bytearray(trace.read_bytes())
        content[len(content) // 2] ^= 1
        trace.write_bytes(content)
        assert_refused(call("evaluate", "--traces", trace, "--output", tmp_path / "out"), "tiny.sgt is corrupt")


class TestReplaySpeed:
    def test_it_tells_what_was_played_and_recorded_and_how_fast(
        self, folders: TinyFolders, call: Caller, tmp_path: Path, trace: Path
    ) -> None:
        output, few = tmp_path / "speed", ["--episodes", 3, "--steps", 4, "--repeats", 1, "--split", "train"]
        few += ["--target", folders.target, "--draft", folders.draft, "--dtype", "float32", "--record-tokens", 6]
        few += ["--prompts", write_prompts(tmp_path / "some.jsonl", ["hello", "abc abc"])]
        ended = call("replay-speed", "--traces", trace, "--output", output, *few)
        assert ended.status == 0, ended.err
        record = json.loads((output / "results.json").read_text(encoding="utf-8"))
        speeds = {speed["what"]: speed for speed in record["speeds"]}
        first, again = speeds["single, first time"], speeds["single, known rounds"]
        assert 0 < first["rounds"] == again["rounds"]
        assert speeds["vectorised, 3 episodes"]["rounds"] == speeds["vectorised, 3 episodes, tabulated"]["rounds"] == 12
        assert (
            speeds["single, random actions, first time"]["rounds"] == speeds["single, random actions"]["rounds"] == 40
        )
        assert speeds["tabulating"]["rounds"] % record["actions"] == 0
        assert 0 < speeds["recording [positions]"]["rounds"] <= 2 * 2 * 6
        assert "recording [positions]" in ended.out
        assert all(speed["per_second"] == speed["rounds"] / speed["seconds"] for speed in speeds.values())

    def test_a_wrong_setting_is_answered_by_name(self, call: Caller, trace: Path) -> None:
        output = trace.with_name("speed")
        ended = call("replay-speed", "--traces", trace, "--output", output, "--episodes", 0)
        assert_refused(ended, "episodes must be 1 or more; got 0.")
        ended = call("replay-speed", "--traces", trace, "--output", output, "--record-prompts", -1)
        assert_refused(ended, "record_prompts must be 0 or more; got -1.")
        ended = call("replay-speed", "--traces", trace, "--output", output, "--prompts", trace.with_name("none.jsonl"))
        assert_refused(ended, "none.jsonl")

"""Training from the command line: a policy that other commands take, whatever interrupts it, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specgym.agents.policies.policy_controller import find_policy
from tests.support.commands import Caller, assert_refused, largest_file
from tests.support.tiny_trace import save_tiny_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_trace(tmp_path_factory.mktemp("trace") / "tiny.sgt")


def arguments(trace: Path, output: Path, *more: object) -> list[object]:
    grid = [
        "--grid.base-depth",
        0,
        2,
        "--grid.early-stop",
        0.1,
        "--grid.high-confidence",
        0.8,
        "--grid.base.max-depth",
        6,
    ]
    config = ["--config.episodes", 8, "--config.rounds", 8, "--config.minibatch", 32, "--config.hidden", 8]
    profiles = ["--profiles", "overhead_bound", "compute_bound"]
    rest = ["--output", output, "--seeds", 2, "--steps", 128, "--evaluations", 2]
    return ["--traces", trace, *profiles, *grid, *config, *rest, *more]


class TestTrain:
    def test_a_policy_is_trained_however_often_it_is_interrupted(
        self, call: Caller, trace: Path, tmp_path: Path
    ) -> None:
        undisturbed = call("train", *arguments(trace, tmp_path / "whole"))
        assert undisturbed.status == 0, undisturbed.err
        ended = call.interrupted("seed", "train", *arguments(trace, tmp_path / "parts"))
        assert ended.status == 130
        assert "Interrupted." in ended.err
        assert not (tmp_path / "parts" / "policy.json").exists()
        assert call("train", *arguments(trace, tmp_path / "parts")).status == 0
        for name in ("policy.json", "policy.safetensors", "seed-1/policy.safetensors"):
            assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        found = find_policy(str(tmp_path / "parts"))
        assert found is not None
        report = json.loads((tmp_path / "parts" / "training.json").read_text())
        assert report["schema"] == "specgym training 1"
        assert [len(seed["looks"]) for seed in report["seeds"].values()] == [2, 2]
        assert report["seeds"]["0"]["steps_per_second"] > 0
        assert set(report["summary"]) == {"score", "overhead_bound", "compute_bound"}
        assert report["about"] == {"traces": ["tiny.sgt"], "profiles": ["overhead_bound", "compute_bound"]}

    @pytest.mark.parametrize("room", [300, 3000])
    def test_a_full_disk_is_one_error_and_the_next_run_goes_on(
        self, call: Caller, trace: Path, tmp_path: Path, room: int
    ) -> None:
        """It fills up while TensorBoard's thread writes, and while a checkpoint is written."""
        line = arguments(trace, tmp_path, "--seeds", 1)
        with largest_file(room):
            ended = call("train", *line)
        assert ended.status == 2
        assert sum(line.startswith("error: ") for line in ended.err.splitlines()) == 1
        assert "File too large" in ended.err.splitlines()[-1]
        assert "Traceback" not in ended.err
        assert call("train", *line).status == 0

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--seeds", 0], "seeds must be 1 or more; got 0"),
            (["--steps", 0], "steps must be 1 or more; got 0"),
            (["--config.minibatch", 7], "config.minibatch must divide config.episodes * config.rounds = 64; got 7"),
            (["--profiles", "overhead_bond"], "Did you mean overhead_bound"),
            (["--grid.early-stop", 0.0], "The trace holds trees of reach 0.05 and more"),
            (["--push", "nobody"], "Expected the name of a policy on the hub, owner/name; got 'nobody'."),
            (["--traces", "none.sgt"], "none.sgt"),
        ],
    )
    def test_bad_input_is_refused_before_any_work(
        self, call: Caller, trace: Path, tmp_path: Path, more: list[object], message: str
    ) -> None:
        assert_refused(call("train", *arguments(trace, tmp_path / "run", *more)), message)
        assert not list(tmp_path.glob("run/seed-*"))

"""The study from the command line: in a minute, in parts, and refused where it cannot be."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
from pathlib import Path

import pytest

from specgym.agents.study.plan import LEARNED
from specgym.env.replay.traces.file import TraceWriter, read_trace
from specgym.env.replay.traces.records import SPLITS
from tests.support.commands import Caller, assert_refused
from tests.support.tiny_trace import save_tiny_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of twelve prompts, those of each in one split."""
    folder = tmp_path_factory.mktemp("trace")
    whole, splits = read_trace(save_tiny_trace(folder / "whole.sgt", prompts=12)), itertools.cycle(SPLITS)
    chosen: dict[str, str] = {}
    with TraceWriter(folder / "tiny.sgt", whole.header) as writer:
        for text in whole.texts:
            if text.identifier not in chosen:
                chosen[text.identifier] = next(splits)
            split = chosen[text.identifier]
            writer.write(dataclasses.replace(text, split=split))
    return folder / "tiny.sgt"


def arguments(trace: Path, folder: Path, *more: object) -> list[object]:
    small = ["--seeds", 2, "--few-seeds", 1, "--steps", 64, "--hindsight-steps", 64]
    small += ["--looks", 1, "--groups", "history", "--static-texts", 2, "--static-values", 2]
    small += ["--rules", "history", "goodput", "--temperatures", 1]
    for each in ("ppo", "hindsight"):
        small += [f"--{each}.episodes", 8, f"--{each}.rounds", 8, f"--{each}.minibatch", 32]
    profiles = ["--profiles", "overhead_bound", "compute_bound"]
    return ["--traces", trace, *profiles, "--run", folder / "run", "--output", folder / "out", *small, *more]


class TestStudy:
    def test_it_goes_on_after_an_interruption_and_tells_everything(
        self, call: Caller, trace: Path, tmp_path: Path
    ) -> None:
        ended = call.interrupted("corrections", "study", *arguments(trace, tmp_path))
        assert ended.status == 130
        assert not (tmp_path / "out" / "results.json").exists()
        finished = tmp_path / "run" / "lessons" / "ppo.json"
        before = finished.stat().st_mtime_ns
        ended = call("study", *arguments(trace, tmp_path))
        assert ended.status == 0, ended.err
        assert finished.stat().st_mtime_ns == before, "what is done is not done again"
        record = json.loads((tmp_path / "out" / "results.json").read_text())
        assert record["schema"] == "specgym study 1"
        cells = [(cell["profile"], cell["temperature"]) for cell in record["cells"]]
        assert cells == [("overhead_bound", 1.0), ("compute_bound", 1.0)]
        for cell in record["cells"]:
            assert set(cell["learned"]) == set(LEARNED)
            assert cell["rungs"]["autoregressive"]["ratio"] == 1
            bound = cell["rungs"]["clairvoyant"]["ratio"]
            assert bound >= max(cell["rungs"]["best_static"]["ratio"], cell["rungs"]["myopic"]["ratio"]) - 1e-9
            assert bound > 1
        assert {each["profile"] for each in record["transfer"]} == {"overhead_bound", "compute_bound"}
        assert set(record["groups"]) == {"corrections_draft", "without_draft", "without_history"}
        for figure in ("ladder", "kinds", "transfer", "ablations", "curve"):
            assert (tmp_path / "out" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        with (tmp_path / "out" / "ladder.csv").open() as file:
            rows = list(csv.DictReader(file))
        told = {(row["profile"], row["controller"]): float(row["ratio"]) for row in rows}
        assert told["compute_bound", "history"] == record["cells"][1]["rungs"]["history"]["ratio"]
        assert {"history", "goodput", "best_static", "clairvoyant", *LEARNED} <= {name for _, name in told}
        assert "# Study of learned controllers" in (tmp_path / "out" / "results.md").read_text()

        refused = call("study", *arguments(trace, tmp_path, "--hindsight-steps", 128))
        assert_refused(refused, "holds a study with other settings, texts or machines")

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--seeds", 0], "seeds must be 1 or more; got 0"),
            (["--rules", "histroy"], "Did you mean history"),
            (["--groups", "lookap"], "Did you mean lookup"),
            (["--profiles", "compute_bond"], "Did you mean compute_bound"),
            (["--profiles", "compute_bound", "compute_bound"], "Expected profiles of different names"),
            (["--traces", "none.sgt"], "none.sgt"),
        ],
    )
    def test_bad_input_is_refused_before_any_work(
        self, call: Caller, trace: Path, tmp_path: Path, more: list[object], message: str
    ) -> None:
        assert_refused(call("study", *arguments(trace, tmp_path, *more)), message)
        assert not (tmp_path / "run" / "lessons").exists()

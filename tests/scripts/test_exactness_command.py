"""`exactness` calls a target exact when every comparison says so, and not when a comparison says nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specgym.controllers.registry import controller_names
from tests.support.commands import Caller, assert_refused, write_prompts
from tests.support.tiny_pair import TinyFolders


class TestExactness:
    @staticmethod
    def arguments(folders: TinyFolders, output: Path, *more: object) -> list[object]:
        texts = ("hello world, hello", "Why is the sky blue?", "abc abc abc", "2 + 2 = 4")
        prompts = write_prompts(output.with_suffix(".jsonl"), texts)
        return ["--target", folders.target, "--prompts", prompts, "--output", output, "--layers", 1, *more]

    def test_a_target_that_is_exact_is_called_so(self, folders: TinyFolders, call: Caller, tmp_path: Path) -> None:
        arguments = self.arguments(folders, tmp_path / "out", "--seeds", 1, "--max-new-tokens", 32)
        speculating = ["fixed_tree", "history", "goodput", "corrections"]
        arguments += ["--controllers", ",".join(["autoregressive", *speculating])]
        ended = call("exactness", *arguments)
        assert ended.status == 0, ended.err
        assert "Every output is exact" in ended.err
        record = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
        assert record["exact"] is True
        compared = [(case["runner"], case["draft"], case["temperature"]) for case in record["cases"]]
        assert compared == [
            ("transformers", "", 0.0),
            *((name, draft, heat) for heat in (0.0, 1.0) for draft in ("lookup", "causal") for name in speculating),
            *((f"{name}, replayed", "causal", heat) for heat in (0.0, 1.0) for name in speculating),
        ]
        assert all(case["identical"] == case["prompts"] == 4 for case in record["cases"])
        assert all(case["exact"] for case in record["cases"])

    def test_controllers_may_be_chosen(self, folders: TinyFolders, call: Caller, tmp_path: Path) -> None:
        more = ["--seeds", 0, "--replay-prompts", 0, "--max-new-tokens", 32]
        more += ["--controllers", "autoregressive,history:source=both"]
        assert call("exactness", *self.arguments(folders, tmp_path / "out", *more)).status == 0
        record = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
        assert {case["runner"] for case in record["cases"]} == {"transformers", "history:source=both"}

    def test_a_misspelt_controller_is_answered_by_name(
        self, folders: TinyFolders, call: Caller, tmp_path: Path
    ) -> None:
        ended = call("exactness", *self.arguments(folders, tmp_path / "out", "--controllers", "godput"))
        assert_refused(ended, "Unknown controller 'godput'. Did you mean goodput")

    def test_a_comparison_of_nothing_is_not_called_exact(
        self, folders: TinyFolders, call: Caller, tmp_path: Path
    ) -> None:
        more = ["--seeds", 0, "--max-new-tokens", 1, "--replay-prompts", 0]  # the prompt's forward gives the only token
        ended = call("exactness", *self.arguments(folders, tmp_path / "out", *more))
        assert ended.status == 1
        assert "NOT every output is exact" in ended.err
        assert "no text differs, but 32 of 33 comparisons say nothing" in ended.err
        record = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
        assert record["exact"] is False
        assert {case["drafted"] for case in record["cases"]} == {0}
        everyone = {name for name in controller_names() if name != "autoregressive"}
        assert {case["runner"] for case in record["cases"]} == {"transformers", *everyone}, "all by default"

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--layers", "0"], "layers must be"),
            (["--layers", "2"], "layers must be"),
            (["--limit", "0"], "limit must be 1 or more; got 0."),
            (["--max-new-tokens", "0"], "max_new_tokens must be 1 or more; got 0."),
            (["--replay-tokens", "0"], "replay_tokens must be 1 or more; got 0."),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_a_wrong_setting_is_answered_by_name(
        self, folders: TinyFolders, call: Caller, tmp_path: Path, more: list[str], message: str
    ) -> None:
        assert_refused(call("exactness", *self.arguments(folders, tmp_path / "out", *more)), message)
        assert not (tmp_path / "out" / "results.json").exists()

"""`measure-latency` leaves a whole profile, with where it comes from and how good it is, or says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from specgym.env.latency.latency_profile import load_profile
from tests.support.commands import Caller, Ended, assert_refused
from tests.support.tiny_pair import TinyFolders

SMALL = ("--contexts", 64, 128, "--repeats", 1, "--check-tokens", 12)


def arguments(folders: TinyFolders, output: Path, *more: object) -> list[object]:
    return ["--target", folders.target, "--draft", folders.draft, "--dtype", "float32", "--output", output, *more]


class TestRecord:
    @pytest.fixture
    def ended(self, folders: TinyFolders, call: Caller, tmp_path: Path) -> Ended:
        return call("measure-latency", *arguments(folders, tmp_path / "out", *SMALL, "--check-prompts", 2))

    def test_the_profile_says_what_it_was_measured_on_and_how_well_it_foretells(
        self, ended: Ended, tmp_path: Path, folders: TinyFolders
    ) -> None:
        assert ended.status == 0, ended.err
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"profile.json", "profile.png"}
        profile = load_profile(tmp_path / "out" / "profile.json")
        expected = {"target": "target", "draft": "draft", "draft_kind": "causal", "dtype": "float32", "repeats": 1}
        assert expected.items() <= profile.origin.items()
        assert {"torch", "transformers", "python"} <= set(profile.origin["versions"])
        assert {"cpu", "threads", "device"} <= set(profile.origin["machine"])
        assert profile.origin["git_revision"] is None or len(profile.origin["git_revision"]) >= 40
        assert profile.origin["started_at"].startswith("20")
        names = ("autoregressive", "fixed_tree", "confidence", "dynamic_depth", "history")
        assert {check.controller for check in profile.checks} == set(names)
        assert all(check.texts == 2 and check.error >= 0 for check in profile.checks)
        for costs in (profile.greedy, profile.sampled):
            assert len(costs.contexts) == 2
            assert (costs.level.most, costs.verify.most) == (64, 128)
        assert {point.stage for point in profile.points} == {
            *("plain", "root", "level", "verify", "overhead", "lookup", "prompt")
        }
        text = (tmp_path / "out" / "profile.json").read_text(encoding="utf-8")
        assert str(tmp_path) not in text
        assert str(folders.target.parent) not in text
        # What is printed: the costs at every context, and the check.
        for costs in (profile.greedy, profile.sampled):
            assert all(f"at {context}" in ended.out for context in costs.contexts)
        assert all(name in ended.out for name in names)
        assert all(word in ended.out for word in ("measured", "predicted", "steps", "error"))
        assert f"Written to {tmp_path / 'out'}/" in ended.err

    def test_a_pair_without_a_draft_model_has_a_profile_too(
        self, folders: TinyFolders, call: Caller, tmp_path: Path
    ) -> None:
        more = ["--draft", "lookup", *SMALL, "--check-prompts", 0, "--most-verified", 12]
        ended = call("measure-latency", *arguments(folders, tmp_path / "out", *more))
        assert ended.status == 0, ended.err
        profile = load_profile(tmp_path / "out" / "profile.json")
        assert profile.greedy.verify.most == 12
        assert profile.greedy.level_cost(64) == 0
        assert profile.checks == ()

    def test_any_controllers_check_it_and_are_ranked_as_measured_and_as_predicted(
        self, folders: TinyFolders, call: Caller, tmp_path: Path
    ) -> None:
        names = ["eagle2", "svip:depth=4", "goodput"]
        more = [*SMALL, "--check-prompts", 1, "--check-controllers", ",".join([*names, "goodput"])]
        ended = call("measure-latency", *arguments(folders, tmp_path / "out", *more))
        assert ended.status == 0, ended.err
        checks = load_profile(tmp_path / "out" / "profile.json").checks
        assert [check.controller for check in checks if check.greedy] == names
        ranks = ended.out[ended.out.index("from fast to slow") :]
        for place in ("greedy, 3", "sampled, 3"):
            assert place in ranks
        assert all(ranks.count(name) == 4 for name in names), "in two orders, greedy and sampled"

    def test_by_default_the_contexts_are_those_that_the_pair_can_read(
        self, folders: TinyFolders, call: Caller, tmp_path: Path
    ) -> None:
        more = ["--repeats", 1, "--check-prompts", 0, "--most-verified", 8, "--most-expanded", 4]
        assert call("measure-latency", *arguments(folders, tmp_path / "out", *more)).status == 0
        (context,) = load_profile(tmp_path / "out" / "profile.json").greedy.contexts
        assert 128 <= context < 256


class TestRefusals:
    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--repeats", "0"], "repeats must be 1 or more; got 0."),
            (["--minutes", "0"], "minutes must be over 0; got 0.0."),
            (["--minutes", "nan"], "minutes must be over 0; got nan."),
            (["--check-prompts", "-1"], "check_prompts must be 0 or more; got -1."),
            (["--check-tokens", "0"], "check_tokens must be 1 or more; got 0."),
            (["--most-verified", "31"], "most_verified must be 32 or more for the controllers that check the profile"),
            (["--most-expanded", "7"], "most_expanded must be 8 or more for the controllers that check the profile"),
            (["--check-controllers", "goodputt"], "Unknown controller 'goodputt'. Did you mean goodput"),
            (["--contexts", "128", "64"], "contexts must ascend by 64 tokens or more"),
            (["--contexts", "64", "300"], "contexts must leave 128 tokens of the 384 that this pair reads"),
            (["--target", "./nowhere"], "There is no folder nowhere"),
            (["--output", "pyproject.toml"], "Could not write pyproject.toml"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_a_wrong_setting_is_answered_by_name_and_no_profile_is_written(
        self, folders: TinyFolders, call: Caller, tmp_path: Path, more: list[str], message: str
    ) -> None:
        assert_refused(call("measure-latency", *arguments(folders, tmp_path / "out", *more)), message)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_ctrl_c_leaves_no_half_written_profile(folders: TinyFolders, call: Caller, tmp_path: Path) -> None:
    more = arguments(folders, tmp_path / "out", "--contexts", 64, "--repeats", 10**6, "--minutes", 10**6)
    ended = call.interrupted("measuring", "measure-latency", *more, after=3)
    assert (ended.status, ended.out) == (130, ""), ended.err
    assert "Interrupted." in ended.err
    assert "Traceback" not in ended.err
    assert not list((tmp_path / "out").glob("*"))

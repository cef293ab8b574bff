"""Policies that are played together do the same as each of them alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from specgym.agents.policies.policy_controller import find_policy
from specgym.agents.policies.policy_file import save_policy
from specgym.agents.study.work import play_policies
from specgym.controllers.evaluation.ladder.replayed import LadderEvaluation
from specgym.env.replay.sources import choose_texts, find_profile, find_trace
from specgym.env.replay.traces.file import Trace
from tests.support.policies import correcting_policy
from tests.support.tiny_trace import save_tiny_world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_world(tmp_path_factory.mktemp("texts"))


class TestPlaying:
    def test_rows_equal_those_of_single_replays(self, folder: Path, tmp_path: Path) -> None:
        """A policy takes as long for a text as the same policy run as a controller on a replay."""
        trace = find_trace([folder / "tiny.sgt"])
        profiles = {name: find_profile(str(folder / f"{name}.json")) for name in ("dear", "cheap")}
        policy = correcting_policy(seed=5)
        save_policy(policy, tmp_path)
        compared = drafted = 0
        for temperature in (0.0, 1.0):
            texts = choose_texts(trace.texts, "train", temperature)
            part = Trace(trace.path, trace.header, texts)
            rows = play_policies([policy], [str(tmp_path)], part, profiles, "train")
            for name, profile in profiles.items():
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr("specgym.controllers.registry._FINDERS", [find_policy])
                    alone = LadderEvaluation(texts, trace.header).controller(str(tmp_path), profile)
                together = {row.prompt_id: row for row in rows[name]}
                for row in alone:
                    other = together[row.prompt_id]
                    assert dataclasses.replace(other, seconds=row.seconds) == row
                    assert other.seconds == pytest.approx(row.seconds)
                    compared, drafted = compared + 1, drafted + row.drafted
        assert compared >= 8
        assert drafted > 0, "the test would be vacuous"

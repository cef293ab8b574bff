"""The shipped trace has enough texts of every kind, of the shipped draft, and the shipped profiles load."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from specgym.env.drafts.network import load_network
from specgym.env.latency.latency_profile import load_profile
from specgym.env.models.hub.loading import fingerprint
from specgym.env.prompts import load_prompts
from specgym.env.replay.sources import DEFAULT_TRACE, find_trace, profile_names, shipped_profiles
from specgym.env.replay.traces.file import Trace
from specgym.env.replay.traces.records import SPLITS

DRAFT = Path(__file__).parents[2] / "env" / "drafts" / "weights" / "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECGYM_HOME", str(tmp_path_factory.mktemp("home")))
        return find_trace()


class TestTrace:
    def test_it_is_small(self) -> None:
        assert DEFAULT_TRACE.stat().st_size <= 16e6

    def test_it_holds_texts_of_every_kind_in_every_split_at_both_temperatures(self, trace: Trace) -> None:
        assert sum(len(text.tokens) - text.prompt for text in trace.texts) >= 40_000
        assert len({text.identifier for text in trace.texts}) >= 300
        found = Counter((text.split, text.settings.temperature, text.category) for text in trace.texts)
        kinds = {prompt.category for prompt in load_prompts("builtin")}
        assert len(kinds) == 8
        assert set(found) == {(split, heat, kind) for split in SPLITS for heat in (0.0, 1.0) for kind in kinds}

    def test_all_texts_of_a_prompt_are_in_one_split(self, trace: Trace) -> None:
        assert len({(text.identifier, text.split) for text in trace.texts}) == len(
            {text.identifier for text in trace.texts}
        )

    def test_the_draft_that_guessed_is_the_one_that_is_shipped(self, trace: Trace) -> None:
        assert trace.header.draft == fingerprint(load_network(DRAFT / "draft.safetensors"))
        calibrator = json.loads((DRAFT / "calibrator.json").read_text(encoding="utf-8"))
        assert trace.header.calibrator == calibrator


class TestProfiles:
    def test_each_is_whole_and_says_where_it_comes_from(self) -> None:
        assert set(shipped_profiles()) < set(profile_names())
        for name, path in shipped_profiles().items():
            profile = load_profile(path)
            assert profile.origin["dtype"] == "bfloat16", name
            assert profile.origin["draft_kind"] == "feature"
            assert profile.checks, "it was checked on real texts"

"""A recording answers every request within its rule as the live draft does, and refuses every other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import LimitError, PairError, ParameterError, UnrecordedError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts import Draft, LookupDraft
from specgym.env.drafts.calibrator import Calibrator
from specgym.env.drafts.merged import MergedDraft
from specgym.env.replay.recording.recorder import Recorder, SupersetRule
from specgym.env.replay.traces.recorded_trees import RecordedDraft, RecordedTrees, WholeTextLookup
from specgym.env.tree.growth import grow_tree
from specgym.env.tree.parameters import SOURCES, TreeParameters
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings, TokenChooser
from specgym.env.tree.tree import TokenTree
from tests.support.tiny_models import STOPS, VOCABULARY, causal_draft, feature_draft, generate, make_prompt, tiny_target

TARGET = tiny_target(0)
FIXED = TreeParameters(min_branch=2, mid_branch=2, max_branch=2, frontier_width=128, node_budget=128)
RULE = SupersetRule(floor=0.02, max_depth=6, fixed=(FIXED,))
NOTHING: IntArray = np.empty(0, np.int64)
CALIBRATOR = Calibrator.of(
    {"format": "specgym calibrator 1"}
    | {
        way: {
            "slope_low": [0.7, 1.3],
            "slope_high": [0.4, 0.2],
            "margin": [0.5, -0.3],
            "offset": [[shift, 0.6], [0.3, -0.4]],
        }
        for way, shift in (("greedy", -0.2), ("sampled", 0.4))
    }
)


def make_model(kind: str, calibrator: Calibrator | None) -> Draft:
    draft = causal_draft(TARGET, 0.3) if kind == "causal" else feature_draft(TARGET, 1)
    draft.calibrator = calibrator
    return draft


def write(sampling: SamplingSettings, prompt: Sequence[int], length: int = 40) -> list[int]:
    """Prompt and plain decoding's answer."""
    answer = generate(TARGET, LookupDraft(), Request(tuple(prompt), length, sampling))
    return [*prompt, *answer.tokens]


def recorded(draft: Draft, text: list[int], start: int, sampling: SamplingSettings, batch: int = 7) -> RecordedTrees:
    return Recorder(TARGET, draft, RULE, batch).record(text, start, sampling)


def replayed(draft: Draft, table: RecordedTrees, text: Sequence[int], sampling: SamplingSettings) -> MergedDraft:
    """Drafting from the table, after `text`."""
    merged = MergedDraft(RecordedDraft(table, draft.kind, draft.calibrator, draft.context_limit))
    merged.start(TokenChooser(sampling, VOCABULARY, torch.device("cpu")))
    merged.commit(text, None, NOTHING)
    return merged


@st.composite
def covered(draw: st.DrawFn) -> TreeParameters:
    """Parameters within the rule."""
    base, most = sorted(draw(st.tuples(st.integers(1, 6), st.integers(1, 6))))
    branches = sorted(draw(st.tuples(*[st.integers(1, 4)] * 3)))
    low, high = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    return TreeParameters(
        base,
        most,
        *branches,
        high_confidence=high,
        low_confidence=low,
        early_stop=draw(st.sampled_from([0.02, 0.05, 0.1, 0.3])),
        deep_expand=draw(st.sampled_from([0.0, 0.1, 0.7])),
        frontier_width=draw(st.integers(1, 10)),
        source=draw(st.sampled_from(SOURCES)),
        calibrated=draw(st.booleans()),
        **draw(st.fixed_dictionaries(STOPS)),
    )


def facts(tree: TokenTree) -> list[tuple[object, ...]]:
    return list(
        zip(tree.token.tolist(), tree.parent.tolist(), tree.log_prob.tolist(), tree.from_lookup.tolist(), strict=True)
    )


@pytest.mark.parametrize("calibrator", [None, CALIBRATOR], ids=["raw", "calibrated"])
@pytest.mark.parametrize("sampling", [SamplingSettings(), SamplingSettings(1.0, seed=3)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["causal", "feature"])
class TestExactness:
    @settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])
    @given(data=st.data())
    @torch.inference_mode()
    def test_trees_from_a_recording_are_those_of_the_live_draft(
        self, kind: str, sampling: SamplingSettings, calibrator: Calibrator | None, data: st.DataObject
    ) -> None:
        draft = make_model(kind, calibrator)
        prompt = make_prompt(data.draw(st.integers(0, 9), "prompt"))
        text = write(sampling, prompt)
        table = recorded(draft, text, len(prompt), sampling, data.draw(st.integers(1, 50), "batch"))
        live = LiveDecoder(TARGET, draft)
        live.start(Request(prompt, 40, sampling))
        again = replayed(draft, table, live.tokens, sampling)
        while live.under_way and len(live.tokens) < len(text) - 1:
            for parameters in (FIXED, data.draw(covered(), "parameters")):
                tree = grow_tree(live.tokens[-1], parameters, again.expander(parameters))
            # The live draft may be asked once a round: its cache moves on.
            expected = grow_tree(live.tokens[-1], parameters, live.merged.expander(parameters))
            assert facts(tree) == facts(expected)
            known = len(live.tokens)
            fresh = LiveDecoder(TARGET, draft)
            fresh.start(Request(tuple(text[:known]), len(text) - known, sampling))
            again.commit(fresh.tokens[known:], None, NOTHING)
            live = fresh


class TestRule:
    def test_what_is_not_recorded_is_an_error_that_says_where(self) -> None:
        draft = make_model("feature", None)
        text = write(SamplingSettings(), make_prompt(1))
        table = recorded(draft, text, 8, SamplingSettings())
        wide = TreeParameters(base_depth=6, max_depth=6, frontier_width=50, node_budget=500)
        with pytest.raises(UnrecordedError, match=r"holds no guess at position 11 after a branch of \d tokens"):
            grow_tree(text[11], wide, replayed(draft, table, text[:12], SamplingSettings()).expander(wide))

    def test_more_candidates_than_were_recorded_are_an_error(self) -> None:
        draft = make_model("feature", None)
        text = write(SamplingSettings(), make_prompt(1))
        table = recorded(draft, text, 8, SamplingSettings())
        wide = dataclasses.replace(FIXED, max_branch=5)
        with pytest.raises(UnrecordedError, match=r"4 candidates .* were recorded; 5 are asked for"):
            grow_tree(text[11], wide, replayed(draft, table, text[:12], SamplingSettings()).expander(wide))

    @pytest.mark.parametrize("length", [6, 41])
    def test_positions_outside_the_answer_are_an_error(self, length: int) -> None:
        draft = make_model("feature", None)
        text = write(SamplingSettings(), make_prompt(1), 33)
        table = recorded(draft, text, 8, SamplingSettings())
        assert len(text) == 41
        with pytest.raises(UnrecordedError, match=f"position {length - 1}"):
            grow_tree(0, FIXED, replayed(draft, table, text[:length], SamplingSettings()).expander(FIXED))

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"floor": 0.0}, "floor must be over 0 and at most 1; got 0.0"),
            ({"floor": 1.5}, "got 1.5"),
            ({"max_depth": 0}, "max_depth must be 1 or more"),
            ({"columns": 1}, "columns 2 or more; got 10 and 1"),
            ({"columns": 3, "fixed": (TreeParameters(),)}, "max_branch of 3 or less"),
            ({"fixed": (TreeParameters(source="both"),)}, "source=model"),
        ],
    )
    def test_rules_that_cannot_be_kept_are_refused(self, values: dict[str, object], message: str) -> None:
        with pytest.raises(ParameterError, match=message):
            SupersetRule(**values)  # type: ignore[arg-type]


def test_a_text_that_leaves_no_room_for_branches_is_refused() -> None:
    draft = make_model("causal", None)
    with pytest.raises(LimitError, match=r"text of 123 tokens is too long to record: .* at most 122"):
        recorded(draft, [1] * 123, 8, SamplingSettings())


def test_prompt_lookup_needs_no_recording() -> None:
    with pytest.raises(PairError, match="feature or causal; got a draft of kind 'lookup'"):
        Recorder(TARGET, LookupDraft())


@given(text=st.lists(st.integers(0, 2), min_size=1, max_size=60), data=st.data())
def test_hindsight_says_what_lookup_said_when_it_had_read_no_further(text: list[int], data: st.DataObject) -> None:
    hindsight, reader = WholeTextLookup(text), LookupDraft()
    reader.forget()
    until = data.draw(st.integers(1, len(text)), "until")
    path = data.draw(st.lists(st.integers(0, 2), max_size=3), "path")
    for token in text[:until]:
        reader.take(token)
    hindsight.seek(data.draw(st.integers(0, len(text)), "elsewhere"))
    hindsight.seek(until)
    assert hindsight.at_root() == reader.at_root()
    assert hindsight.after(path, 4) == reader.after(path, 4)

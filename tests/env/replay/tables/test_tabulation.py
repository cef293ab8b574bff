"""A table of outcomes says of every position what replay says of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specgym.controllers.rules.phases import PHASE_1, PHASE_2, fixed_tree
from specgym.env.common.errors import ParameterError, TraceError, UnrecordedError
from specgym.env.replay.decoder import TextReplay
from specgym.env.replay.tables.tabulation import tabulate
from specgym.env.replay.tables.trace_table import TraceTable
from specgym.env.tree.parameters import PLAIN, SOURCES, TreeParameters
from tests.env.replay.test_decoder import Recorded, record
from tests.env.replay.test_recording import CALIBRATOR
from tests.support.tiny_models import STOPS, causal_draft, feature_draft, tiny_target

PARAMETERS = st.builds(
    TreeParameters,
    base_depth=st.integers(1, 5),
    max_depth=st.integers(5, 10),
    early_stop=st.sampled_from([0.05, 0.1, 0.3]),
    deep_expand=st.sampled_from([0.2, 0.7]),
    frontier_width=st.integers(1, 8),
    node_budget=st.integers(1, 31),
    source=st.sampled_from(SOURCES),
    calibrated=st.booleans(),
    **STOPS,
) | st.sampled_from([PLAIN, PHASE_1, PHASE_2, fixed_tree().parameters])


@pytest.fixture(scope="module", params=["causal", "feature"])
def recorded(request: pytest.FixtureRequest) -> Recorded:
    target = tiny_target(0, end_tokens=(4, 9))
    draft = causal_draft(target) if request.param == "causal" else feature_draft(target, 1)
    draft.calibrator = CALIBRATOR
    return record(target, draft, prompts=5)


def corpus(recorded: Recorded, greedy: bool) -> TraceTable:
    texts = [text for text in recorded.replay.texts.values() if text.settings.greedy == greedy]
    return TraceTable(texts, recorded.replay.header)


class TestTabulate:
    @pytest.mark.parametrize("greedy", [True, False])
    @settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
    @given(parameters=PARAMETERS)
    def test_it_says_what_replay_says(self, recorded: Recorded, greedy: bool, parameters: TreeParameters) -> None:
        texts = corpus(recorded, greedy)
        table = tabulate(texts, parameters)
        assert len(table.accepted) == len(texts.roots) > 50
        replays = [TextReplay(text, texts.header) for text in texts.texts]
        for index, root in enumerate(texts.roots.tolist()):
            text = int(texts.owner[root])
            deepest = int(texts.deepest(np.array([root]))[0])
            outcome, kept = replays[text].outcome(root - int(texts.start[text]), parameters.capped(deepest))
            rows = table.deeper_rows[index]
            assert tuple(rows[rows > 0].tolist()) == outcome.level_rows[1:]
            assert (table.asked[index], table.kept[index]) == (bool(outcome.level_rows), kept)
            for name in ("accepted", "drafted", "depth", "lookup_nodes"):
                assert getattr(table, name)[index] == getattr(outcome, name), name

    def test_some_roots_may_be_asked_for_in_any_order(self, recorded: Recorded) -> None:
        texts = corpus(recorded, True)
        whole = tabulate(texts, PHASE_2)
        chosen = np.random.default_rng(0).permutation(len(texts.roots))[:40]
        some = tabulate(texts, PHASE_2, texts.roots[chosen])
        assert some.accepted.tolist() == whole.accepted[chosen].tolist()
        assert some.drafted.tolist() == whole.drafted[chosen].tolist()

    def test_a_tree_that_was_not_recorded_is_an_error(self, recorded: Recorded) -> None:
        wide = dataclasses.replace(PHASE_1, base_depth=8, max_depth=8, frontier_width=60)
        with pytest.raises(UnrecordedError, match="Ask for a tree within the recorded ones"):
            tabulate(corpus(recorded, True), wide)


class TestCorpus:
    def test_greedy_and_sampled_texts_do_not_mix(self, recorded: Recorded) -> None:
        with pytest.raises(ParameterError, match="all greedy or all sampled"):
            TraceTable(list(recorded.replay.texts.values()), recorded.replay.header)

    def test_no_text_is_an_error(self, recorded: Recorded) -> None:
        with pytest.raises(TraceError, match="got none"):
            TraceTable([], recorded.replay.header)

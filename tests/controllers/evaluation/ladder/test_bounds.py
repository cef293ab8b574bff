"""The bounds: what is said to be the best is the best of all ways there are, and everything adds up as in replay."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from specgym.controllers.evaluation.ladder.bounds import (
    Choices,
    Playback,
    clairvoyant,
    collect_choices,
    myopic,
    play_static,
)
from specgym.controllers.rules.phases import PHASE_1, PHASE_2, StaticController
from specgym.controllers.run import run
from specgym.env.latency.costs import RoundCosts
from specgym.env.latency.families import CommonCosts, compute_bound, overhead_bound
from specgym.env.latency.latency_profile import LatencyProfile
from specgym.env.replay.decoder import TextReplay
from specgym.env.replay.tables.action_table import OutcomeTable
from specgym.env.replay.tables.tabulation import tabulate
from specgym.env.replay.tables.trace_table import TraceTable
from specgym.env.tree.parameters import PLAIN, TreeParameters
from specgym.env.tree.rounds import Request
from tests.env.replay.test_decoder import Recorded, record
from tests.support.tiny_models import causal_draft, chain, feature_draft, tiny_target

GRID = (
    PLAIN,
    chain(2),
    chain(4),
    PHASE_2,
    dataclasses.replace(PHASE_2, early_stop=0.3),
    dataclasses.replace(PHASE_2, source="lookup"),
    dataclasses.replace(PHASE_2, source="both"),
)
# With an expensive draft and expensive rows, plain decoding is the best choice now and then.
EXPENSIVE = compute_bound(CommonCosts(draft_ratio=0.3), 0.6)
PROFILES = {"overhead": overhead_bound(CommonCosts(draft_ratio=0.2), 0.02), "compute": EXPENSIVE}


@pytest.fixture(scope="module", params=["causal", "feature"])
def recorded(request: pytest.FixtureRequest) -> Recorded:
    target = tiny_target(0, end_tokens=(4, 9))
    draft = causal_draft(target) if request.param == "causal" else feature_draft(target, 1)
    return record(target, draft, prompts=6)


def corpus(recorded: Recorded, longest: int = 40) -> TraceTable:
    """The greedy texts, cut short: they end where they are cut."""
    texts = [text for text in recorded.replay.texts.values() if text.settings.greedy]
    cut = [
        dataclasses.replace(text, tokens=text.tokens[: text.prompt + longest], max_new_tokens=longest)
        for text in texts
        if len(text.tokens) >= text.prompt + longest
    ]
    return TraceTable(cut, recorded.replay.header)


def choices(texts: TraceTable, costs: RoundCosts, grid: Sequence[TreeParameters] = GRID) -> Choices:
    """The cheapest choices of a grid."""
    outcomes = OutcomeTable([texts], grid)
    outcomes.tabulate_all()
    return collect_choices(outcomes, [costs])[0]


class Ways:
    """All ways to go through a text, one by one."""

    def __init__(self, texts: TraceTable, profile: LatencyProfile, text: int) -> None:
        self.text, self.header, self.costs = texts.texts[text], texts.header, profile.costs(True)
        self.replay = TextReplay(self.text, texts.header)
        self.limit = self.text.prompt + self.text.max_new_tokens

    def round(self, position: int, owed: int, parameters: TreeParameters) -> tuple[int, int, float]:
        """Where a round ends, what is owed then, and its time."""
        outcome, kept = self.replay.outcome(position, parameters.capped(self.limit - position - 2))
        rows = (owed, *outcome.level_rows[1:]) if outcome.level_rows else ()
        seconds = self.costs.round_seconds(position, rows, 1 + outcome.drafted, outcome.lookup_nodes)
        end = min(position + outcome.accepted + 1, len(self.text.tokens) - 1)
        return end, (0 if rows else owed) + end - position - kept, seconds

    def least(self) -> float:
        """The least time of all."""

        @cache
        def after(position: int, owed: int) -> float:
            if position == len(self.text.tokens) - 1:
                return 0.0
            ways = (self.round(position, owed, parameters) for parameters in GRID)
            return min(seconds + after(end, left) for end, left, seconds in ways)

        return after(self.text.prompt, self.owed)

    def greedy(self) -> float:
        """The time when every round brings the most tokens per time."""
        position, owed, total = self.text.prompt, self.owed, 0.0
        while position < len(self.text.tokens) - 1:
            ways = (self.round(position, owed, parameters) for parameters in GRID)
            end, left, seconds = max(ways, key=lambda way: (way[0] - position) / way[2])
            position, owed, total = end, left, total + seconds
        return total

    @property
    def owed(self) -> int:
        return self.text.prompt + 1 - (self.header.draft_kind == "feature")


@pytest.mark.parametrize("profile", PROFILES)
class TestBounds:
    def test_the_clairvoyant_is_the_best_of_all_ways(self, recorded: Recorded, profile: str) -> None:
        texts = corpus(recorded, 12)
        costs = PROFILES[profile].costs(True)
        best = clairvoyant(texts, costs, choices(texts, costs))
        expected = [Ways(texts, PROFILES[profile], text).least() for text in range(len(texts.texts))]
        assert best.seconds.tolist() == pytest.approx(expected)

    def test_the_myopic_takes_the_most_tokens_per_time_of_every_round(self, recorded: Recorded, profile: str) -> None:
        texts = corpus(recorded)
        costs = PROFILES[profile].costs(True)
        found = myopic(texts, costs, choices(texts, costs))
        expected = [Ways(texts, PROFILES[profile], text).greedy() for text in range(len(texts.texts))]
        assert found.seconds.tolist() == pytest.approx(expected)

    def test_nothing_on_the_grid_beats_the_clairvoyant(self, recorded: Recorded, profile: str) -> None:
        texts = corpus(recorded)
        costs = PROFILES[profile].costs(True)
        found = choices(texts, costs)
        best = clairvoyant(texts, costs, found).seconds
        assert (best <= myopic(texts, costs, found).seconds + 1e-12).all()
        for parameters in GRID:
            assert (best <= play_static(texts, costs, [tabulate(texts, parameters)]).seconds[0] + 1e-12).all()


@pytest.mark.parametrize("parameters", [*GRID, PHASE_1], ids=str)
def test_static_choices_play_as_in_replay(recorded: Recorded, parameters: TreeParameters) -> None:
    recorded.replay.profile = EXPENSIVE
    texts = corpus(recorded, 40)
    played = play_static(texts, EXPENSIVE.costs(True), [tabulate(texts, parameters)])
    assert isinstance(played, Playback)
    for number, text in enumerate(texts.texts):
        request = Request(text.tokens[: text.prompt], text.max_new_tokens, text.settings)
        generation = run(recorded.replay, StaticController(parameters), request)
        predicted = sum(generation.seconds_by_part[part] for part in ("draft", "verify", "commit"))
        assert played.seconds[0, number] == pytest.approx(predicted)
        assert played.rounds[0, number] == generation.rounds - 1  # the first one reads the prompt
        assert (played.drafted[0, number], played.accepted[0, number]) == (generation.drafted, generation.accepted)


def test_choices_grow_with_the_grid(recorded: Recorded) -> None:
    texts, costs = corpus(recorded), EXPENSIVE.costs(True)
    few, many = (clairvoyant(texts, costs, choices(texts, costs, grid)) for grid in (GRID[:2], GRID))
    assert (many.seconds <= few.seconds + 1e-12).all()
    assert many.seconds.sum() < few.seconds.sum()
    assert np.array_equal(many.rounds > 0, np.ones(len(texts.texts), np.bool_))

"""Learned costs recover the costs behind the rounds, in spite of disturbances, and are 0 before the first round."""

from __future__ import annotations

import numpy as np
import pytest

from specgym.controllers.rules.goodput import GoodputController
from specgym.controllers.run import run
from specgym.env.common.errors import LimitError
from specgym.env.decoding.learned_costs import LearnedCosts
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts import LookupDraft
from specgym.env.tree.observation import LEVEL_PRIOR, ROW_PRIOR
from specgym.env.tree.rounds import Request, RoundOutcome, RoundSeconds, Stopwatch
from tests.support.tiny_models import tiny_target

PLAIN, ROW, LEVEL = 0.020, 0.0006, 0.0015
"""a machine to find [s]"""


def outcome(nodes: int, levels: int, disturbance: float = 1.0, beginning: float = 0.0) -> RoundOutcome:
    draft = beginning + LEVEL * levels if levels else 0.0
    seconds = RoundSeconds(draft=draft, verify=disturbance * (PLAIN + ROW * nodes))
    return RoundOutcome((1,), drafted=nodes, level_rows=(1,) * levels, seconds=seconds)


def learned(rounds: list[RoundOutcome], window: int = 256) -> LearnedCosts:
    costs = LearnedCosts(window)
    for each in rounds:
        costs.note(each)
    return costs


class TestLearnedCosts:
    def test_costs_are_zero_before_the_first_round(self) -> None:
        costs = LearnedCosts()
        assert costs.level_cost(5) == costs.row_cost(5) == 0

    def test_they_are_found_from_rounds_of_several_sizes(self) -> None:
        rng = np.random.default_rng(0)
        costs = learned([outcome(int(rng.integers(32)), int(rng.integers(1, 9))) for _ in range(300)])
        assert costs.plain == pytest.approx(PLAIN, rel=0.02)
        assert costs.row_cost(0) == pytest.approx(ROW / PLAIN, rel=0.05)
        assert costs.level_cost(0) == pytest.approx(LEVEL / PLAIN, rel=0.05)

    @pytest.mark.parametrize("most", [2, 8])
    def test_a_levels_cost_does_not_include_the_start_of_drafting(self, most: int) -> None:
        rng = np.random.default_rng(3)
        levels = rng.integers(1, most + 1, size=300).tolist()
        for beginning in (0.0, 0.5 * LEVEL, 2 * LEVEL):
            costs = learned([outcome(4, number, beginning=beginning) for number in levels])
            assert costs.level_cost(0) * costs.plain == pytest.approx(LEVEL, rel=0.15), "but for the pull"

    def test_levels_cost_something_with_noise_and_without_a_start(self) -> None:
        rng = np.random.default_rng(4)
        rounds = [outcome(4, int(rng.integers(1, 5)), beginning=rng.normal(0, 0.3 * LEVEL)) for _ in range(300)]
        assert learned(rounds).level_cost(0) == pytest.approx(LEVEL / PLAIN, rel=0.15)

    def test_the_plain_step_is_right_where_rows_cost_more_than_in_proportion(self) -> None:
        steep = [outcome(nodes, 4, 1 + (nodes / 16) ** 2) for nodes in (20, 64)] * 100
        costs = learned(steep)
        assert costs.plain > 0
        for _ in range(1500):
            costs.note(outcome(0, 0))
        assert costs.plain == pytest.approx(PLAIN, rel=0.05)

    def test_occasional_stalls_do_not_make_the_machine_slow(self) -> None:
        rng = np.random.default_rng(1)
        rounds = [outcome(int(rng.integers(32)), 4, 20.0 if rng.random() < 0.02 else 1.0) for _ in range(400)]
        assert learned(rounds).plain == pytest.approx(PLAIN, rel=0.1)

    def test_the_prior_decides_while_all_trees_are_alike(self) -> None:
        costs = learned([outcome(0, 0)] * 50)
        assert costs.plain == pytest.approx(PLAIN, rel=1e-3)
        assert costs.row_cost(0) == pytest.approx(ROW_PRIOR, rel=1e-3)
        assert costs.level_cost(0) == pytest.approx(LEVEL_PRIOR)

    def test_they_follow_a_machine_that_changes(self) -> None:
        sizes = np.random.default_rng(2).integers(32, size=200).tolist()
        rounds = [outcome(nodes, 4) for nodes in sizes] + [outcome(nodes, 4, 1.5) for nodes in sizes]
        assert learned(rounds, window=32).plain == pytest.approx(1.5 * PLAIN, rel=0.05)

    def test_a_negative_cost_of_a_row_becomes_zero(self) -> None:
        rounds = [outcome(nodes, 1, 1 / (1 + nodes)) for nodes in range(32)] * 4
        assert learned(rounds).row_cost(0) == 0

    def test_a_window_that_is_not_positive_is_refused(self) -> None:
        with pytest.raises(LimitError, match="window must be 1 or more; got 0"):
            LearnedCosts(0)


def test_a_decoder_shows_controllers_what_it_has_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stopwatch, "lap", lambda watch: 0.001)  # a busy machine must not decide the test
    decoder = LiveDecoder(tiny_target(), LookupDraft(), LearnedCosts())
    run(decoder, GoodputController(), Request((1, 2, 3, 1, 2, 3), 24, ignore_end=True))
    seen = decoder.observe()
    assert seen.row_cost > 0
    assert seen.level_cost > 0

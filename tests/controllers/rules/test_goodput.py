"""Goodput speculates as far as it pays, on made-up rounds and on a trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from specgym.controllers.evaluation.ladder.replayed import best_static
from specgym.controllers.registry import make_controller
from specgym.controllers.rules.goodput import GoodputController
from specgym.controllers.rules.throughput import machine_costs
from specgym.env.gym.grid import ParameterGrid
from specgym.env.latency.families import CommonCosts, compute_bound, overhead_bound
from specgym.env.replay.traces.file import read_trace
from specgym.env.tree.parameters import PLAIN
from tests.support.made_rounds import CHEAP, EXPENSIVE, FIRST, after, play
from tests.support.replayed import replayed_seconds


class TestGoodput:
    def test_nodes_and_levels_must_pay_the_price_of_their_time(self) -> None:
        rule = make_controller("goodput:price=2:capture=0.5:source=model")
        chosen = rule.act(after(0, 0, level_cost=0.1, row_cost=0.04))
        assert chosen.min_reach == pytest.approx(2 * 0.04)
        assert chosen.min_level_reach == pytest.approx(2 * (0.1 + 0.04) / 0.5), "a level adds a row at least"
        assert chosen.early_stop == pytest.approx(0.08 / 0.5), "a child has half of its parent's reach"
        assert rule.act(after(0, 0, level_cost=0.1, row_cost=0.001)).early_stop == 0.05
        alone = make_controller("goodput:price=2:source=lookup")
        sure = after(0, 0, lookup_match=16, lookup_rate=0.95, level_cost=0.1, row_cost=0.04)
        assert (alone.act(sure).early_stop, alone.act(sure).min_level_reach) == (pytest.approx(0.08), 0)

    def test_the_price_of_time_is_its_own_throughput_and_at_least_plain_decodings(self) -> None:
        rule = GoodputController(source="model")
        assert rule.time_price == 1
        play(rule, 300, accepted=4, level_cost=0.02, row_cost=0.0)
        assert rule.time_price == pytest.approx(5 / (1 + 0.02 * 10), rel=0.05)
        rule.reset()
        assert rule.time_price > 3, "what was learned is kept"
        play(rule, 1500, accepted=0, **EXPENSIVE)
        assert rule.time_price == pytest.approx(1, rel=0.02)

    def test_it_does_not_speculate_where_the_first_level_cannot_pay(self) -> None:
        assert make_controller("goodput").act(after(0, 0, level_cost=0.5, row_cost=0.3)) == PLAIN
        assert make_controller("goodput").act(after(0, 0, **CHEAP)).speculates

    def test_it_pauses_where_speculation_has_not_paid_and_tries_again_less_and_less_often(self) -> None:
        chosen = play(make_controller("goodput"), 2000, accepted=0, level_cost=0.2, row_cost=0.1)
        speculated = [choice.speculates for choice in chosen]
        assert all(speculated[:64])
        assert 0 < sum(speculated[200:1000]) < 60
        assert 0 < sum(speculated[1000:]) < sum(speculated[:1000]) / 2

    def test_prompt_lookup_drafts_alone_only_where_it_is_sure(self) -> None:
        rule = make_controller("goodput")
        sure = after(0, 0, lookup_match=16, lookup_rate=0.95, level_cost=0.2, row_cost=0.01)
        assert rule.act(sure).source == "lookup"
        assert rule.act(sure).min_level_reach == 0
        unsure = after(0, 0, lookup_match=2, lookup_rate=0.1, level_cost=0.2, row_cost=0.12)
        assert rule.act(unsure).source == "both"
        assert make_controller("goodput:source=model").act(sure).source == "model"
        assert make_controller("goodput:source=lookup").act(unsure) == PLAIN

    def test_a_machine_that_reports_no_costs_gets_the_default_ones(self) -> None:
        assert (machine_costs(FIRST).level, machine_costs(FIRST).row) == (0.1, 0.01)
        known = machine_costs(after(0, 0, level_cost=0.2))
        assert (known.level, known.row) == (0.2, 0.0), "rows may be free"


class TestGoodputOnATrace:
    @pytest.mark.parametrize("row", [0.001, 0.03])
    def test_it_is_about_as_fast_as_the_best_static_tree_of_these_texts(self, trace: Path, row: float) -> None:
        profile, found = overhead_bound(CommonCosts(round_overhead=0), row), read_trace(trace)
        texts = [text for text in found.texts if text.settings.greedy]
        grid = list(ParameterGrid().covered(found.header.rule))[::7]
        (best,) = best_static(texts, found.header, [profile.costs(True)], grid)
        assert best.speculates, "the test would be vacuous"
        static = replayed_seconds(trace, "best_static", profile, best)
        assert (
            replayed_seconds(trace, "goodput", profile)
            < 1.1 * static
            < replayed_seconds(trace, "autoregressive", profile)
        )

    def test_where_rows_are_expensive_it_costs_next_to_nothing(self, trace: Path) -> None:
        profile = compute_bound(CommonCosts(draft_ratio=1.0), fixed=0.0)
        plain, deep = (replayed_seconds(trace, name, profile) for name in ("autoregressive", "dynamic_depth"))
        assert replayed_seconds(trace, "goodput", profile) < 1.02 * plain < 1.5 * plain < deep

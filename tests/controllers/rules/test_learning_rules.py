"""Rules that learn from what rounds bring and take: the bandits, goodput, and the guard."""

from __future__ import annotations

from pathlib import Path

import pytest

from specgym.controllers.controller import Controller
from specgym.controllers.evaluation.ladder.replayed import LadderEvaluation, best_static
from specgym.controllers.guard import GuardedController
from specgym.controllers.registry import make_controller
from specgym.controllers.rules.bandits import BanditController
from specgym.controllers.rules.goodput import GoodputController
from specgym.controllers.rules.phases import PHASE_2, StaticController
from specgym.controllers.rules.throughput import Gate, Throughput, machine_costs
from specgym.env.common.errors import UnknownNameError
from specgym.env.latency.families import CommonCosts, compute_bound, overhead_bound
from specgym.env.latency.latency_profile import LatencyProfile
from specgym.env.replay.tabulation import covered_grid
from specgym.env.replay.traces.file import read_trace
from specgym.env.tree.observation import Observation, PastRound
from specgym.env.tree.parameters import PLAIN, TreeParameters
from tests.controllers.rules.test_published import FIRST, after
from tests.support.tiny_models import chain
from tests.support.tiny_trace import save_tiny_trace

CHEAP = {"level_cost": 0.05, "row_cost": 0.001}
DEAR = {"level_cost": 0.3, "row_cost": 0.3}


def play(controller: Controller, rounds: int, accepted: int = 0, **costs: float) -> list[TreeParameters]:
    """What is chosen in so many rounds; every tree is a chain as deep as was asked, which brings `accepted` tokens."""
    chosen, seen = [], Observation(9, 4, 400, **costs)  # type: ignore[arg-type]
    for _ in range(rounds):
        chosen.append(controller.act(seen))
        depth = chosen[-1].base_depth
        seen = after(min(accepted, depth), depth, **costs)
    return chosen


class TestBandits:
    def bandit(self, exploration: float = 0.3) -> BanditController:
        bandit = make_controller(f"banditspec:exploration={exploration}")
        assert isinstance(bandit, BanditController)
        return bandit

    def test_every_arm_is_played_once_before_any_is_played_again(self) -> None:
        bandit = self.bandit()
        played = play(bandit, len(bandit.arms), accepted=1, **CHEAP)
        assert len(set(played)) == len(bandit.arms) == 6

    def test_banditspec_comes_to_play_what_brings_most_per_time(self) -> None:
        deep = [choice.base_depth for choice in play(self.bandit(), 400, accepted=10, **CHEAP)]
        plain = [choice.base_depth for choice in play(self.bandit(), 400, accepted=0, **DEAR)]
        assert max(set(deep[200:]), key=deep[200:].count) == 8
        assert plain[200:].count(0) > 150

    def test_it_goes_on_exploring_and_without_exploration_it_does_not(self) -> None:
        assert len(set(play(self.bandit(1.0), 400, accepted=2, **CHEAP)[300:])) > 2
        assert len(set(play(self.bandit(0.0), 400, accepted=10, **CHEAP)[300:])) == 1

    def test_nothing_is_left_to_chance_and_nothing_forgotten_between_requests(self) -> None:
        first, second = self.bandit(), self.bandit()
        assert play(first, 100, accepted=2, **CHEAP) == play(second, 100, accepted=2, **CHEAP)
        first.reset()
        assert sum(first.rounds) == 99, "the last round of a request is never seen"
        again = play(first, 20, accepted=2, **CHEAP)
        assert again != play(self.bandit(), 20, accepted=2, **CHEAP)

    def test_a_round_that_somebody_else_made_plain_counts_for_no_arm(self) -> None:
        bandit = self.bandit()
        bandit.act(FIRST)
        assert bandit.act(after(0, 0)).speculates
        assert sum(bandit.rounds) == 1, "the first arm is plain decoding itself"
        bandit.act(after(0, 0))
        assert sum(bandit.rounds) == 1

    def test_tapout_chooses_among_rules_that_end_a_chain(self) -> None:
        rule = make_controller("tapout")
        assert isinstance(rule, BanditController)
        choices = play(rule, 4, accepted=3)
        assert len({(each.min_confidence > 0, each.max_entropy) for each in choices}) == 4
        assert {each.max_branch for each in choices} == {1}


class TestGoodput:
    def test_a_node_and_a_level_cost_what_their_time_is_worth(self) -> None:
        rule = make_controller("goodput:price=2:capture=0.5:source=model")
        chosen = rule.act(after(0, 0, level_cost=0.1, row_cost=0.04))
        assert chosen.min_reach == pytest.approx(2 * 0.04)
        assert chosen.min_level_reach == pytest.approx(2 * (0.1 + 0.04) / 0.5), "a level brings a row at least"
        assert chosen.early_stop == pytest.approx(0.08 / 0.5), "a child has half of its parent's reach"
        assert rule.act(after(0, 0, level_cost=0.1, row_cost=0.001)).early_stop == 0.05
        alone = make_controller("goodput:price=2:source=lookup")
        sure = after(0, 0, lookup_match=16, lookup_rate=0.95, level_cost=0.1, row_cost=0.04)
        assert (alone.act(sure).early_stop, alone.act(sure).min_level_reach) == (pytest.approx(0.08), 0)

    def test_the_price_is_its_own_throughput_and_never_under_plain_decodings(self) -> None:
        rule = GoodputController(source="model")
        assert rule.price == 1
        play(rule, 300, accepted=4, level_cost=0.02, row_cost=0.0)
        assert rule.price == pytest.approx(5 / (1 + 0.02 * 10), rel=0.05)
        rule.reset()
        assert rule.price > 3, "what was learned is kept"
        play(rule, 1500, accepted=0, **DEAR)
        assert rule.price == pytest.approx(1, rel=0.02)

    def test_it_does_not_speculate_where_the_first_level_cannot_pay(self) -> None:
        assert make_controller("goodput").act(after(0, 0, level_cost=0.5, row_cost=0.3)) == PLAIN
        assert make_controller("goodput").act(after(0, 0, **CHEAP)).speculates

    def test_it_stops_where_speculation_has_not_paid_and_tries_again_ever_less_often(self) -> None:
        chosen = play(make_controller("goodput"), 2000, accepted=0, level_cost=0.2, row_cost=0.1)
        speculated = [choice.speculates for choice in chosen]
        assert all(speculated[:64])
        assert 0 < sum(speculated[200:1000]) < 60
        assert 0 < sum(speculated[1000:]) < sum(speculated[:1000]) / 2

    def test_prompt_lookup_goes_alone_where_it_is_sure_and_never_where_it_is_not(self) -> None:
        rule = make_controller("goodput")
        sure = after(0, 0, lookup_match=16, lookup_rate=0.95, level_cost=0.2, row_cost=0.01)
        assert rule.act(sure).source == "lookup"
        assert rule.act(sure).min_level_reach == 0
        unsure = after(0, 0, lookup_match=2, lookup_rate=0.1, level_cost=0.2, row_cost=0.12)
        assert rule.act(unsure).source == "both"
        assert make_controller("goodput:source=model").act(sure).source == "model"
        assert make_controller("goodput:source=lookup").act(unsure) == PLAIN

    def test_a_machine_that_tells_no_costs_is_taken_for_a_usual_one(self) -> None:
        assert (machine_costs(FIRST).level, machine_costs(FIRST).row) == (0.1, 0.01)
        known = machine_costs(after(0, 0, level_cost=0.2))
        assert (known.level, known.row) == (0.2, 0.0), "rows may be free"


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_trace(tmp_path_factory.mktemp("trace") / "tiny.sgt", prompts=12)


def seconds(trace: Path, name: str, profile: LatencyProfile, static: TreeParameters | None = None) -> float:
    """Total time of all greedy texts."""
    found = read_trace(trace)
    texts = [text for text in found.texts if text.settings.greedy]
    return sum(row.seconds for row in LadderEvaluation(texts, found.header).controller(name, profile, static))


class TestGoodputOnATrace:
    @pytest.mark.parametrize("row", [0.001, 0.03])
    def test_it_comes_near_the_best_static_tree_of_these_very_texts_or_beats_it(self, trace: Path, row: float) -> None:
        profile, found = overhead_bound(CommonCosts(round_overhead=0), row), read_trace(trace)
        texts = [text for text in found.texts if text.settings.greedy]
        grid = list(covered_grid(found.header))[::7]
        (best,) = best_static(texts, found.header, [profile.costs(True)], grid)
        assert best.speculates, "the test would be vacuous"
        static = seconds(trace, "best_static", profile, best)
        assert seconds(trace, "goodput", profile) < 1.1 * static < seconds(trace, "autoregressive", profile)

    def test_where_rows_are_dear_it_costs_next_to_nothing(self, trace: Path) -> None:
        profile = compute_bound(CommonCosts(draft_ratio=1.0), fixed=0.0)
        plain = seconds(trace, "autoregressive", profile)
        assert (
            seconds(trace, "goodput", profile) < 1.02 * plain < 1.5 * plain < seconds(trace, "dynamic_depth", profile)
        )

    def test_a_guard_keeps_a_rule_from_losing_much(self, trace: Path) -> None:
        profile = compute_bound(CommonCosts(draft_ratio=0.5), fixed=0.0)
        plain, bold = seconds(trace, "autoregressive", profile), seconds(trace, "history", profile)
        guarded = seconds(trace, "history+guarded:window=4", profile)
        assert plain < guarded < plain + (bold - plain) / 3


class TestGuard:
    def guarded(self, specification: str = "") -> Controller:
        return make_controller("dynamic_depth+guarded" + specification)

    def test_what_pays_is_left_alone(self) -> None:
        assert set(play(self.guarded(), 200, accepted=3, **CHEAP)) == {PHASE_2}

    def test_what_does_not_pay_is_stopped_after_a_window_and_probed_with_growing_breaks(self) -> None:
        chosen = play(self.guarded(":window=8:probe=2:rest=4:longest=16"), 90, **DEAR)
        runs = "".join("x" if choice.speculates else "." for choice in chosen)
        assert runs.startswith("x" * 8 + "." * 4 + "xx" + "." * 8 + "xx" + "." * 16 + "xx" + "." * 16 + "xx")

    def test_it_comes_back_when_speculation_pays_again_and_breaks_are_short_again(self) -> None:
        guard = self.guarded(":window=4:probe=2:rest=4:longest=64")
        play(guard, 60, **DEAR)
        assert all(choice.speculates for choice in play(guard, 100, accepted=4, **CHEAP)[-30:])
        runs = "".join("x" if choice.speculates else "." for choice in play(guard, 12, **DEAR))
        assert "x...." in runs
        assert "....." not in runs

    def test_a_break_goes_on_with_the_next_request(self) -> None:
        guard = self.guarded(":window=4:rest=64")
        play(guard, 10, **DEAR)
        guard.reset()
        assert guard.act(FIRST) == PLAIN

    def test_prompt_lookup_pays_for_no_draft_levels(self) -> None:
        shape = {"level_cost": 0.5, "row_cost": 0.01}
        model = play(make_controller("dynamic_depth+guarded"), 60, accepted=1, **shape)
        lookup = play(make_controller("dynamic_depth:source=lookup+guarded"), 60, accepted=1, **shape)
        assert PLAIN in model
        assert PLAIN not in lookup

    def test_the_draft_is_not_observed_during_a_break(self) -> None:
        class Watcher(StaticController):
            observes_draft = True

        guard = GuardedController(Watcher(chain(3)), window=4, probe=2, rest=4)
        assert guard.observes_draft
        seen = []
        for _ in range(12):
            guard.act(after(0, 3, **DEAR))
            seen.append(guard.observes_draft)
        assert seen == [True] * 4 + [False] * 3 + [True] * 3 + [False] * 2

    def test_options_of_both_are_read_and_wrong_ones_refused(self) -> None:
        guard = make_controller("fixed_tree:branch=3:depth=2+guarded:window=5")
        assert guard.act(FIRST).max_branch == 3
        with pytest.raises(UnknownNameError, match=r"Unknown option of guarded 'windows'. Did you mean window\?"):
            make_controller("history+guarded:windows=5")
        with pytest.raises(UnknownNameError, match="Unknown controller 'hist'"):
            make_controller("hist+guarded")
        with pytest.raises(UnknownNameError, match="Unknown controller 'guarded'"):
            make_controller("guarded")


class TestAccounts:
    def test_a_window_that_paid_makes_breaks_short_again(self) -> None:
        gate = Gate(window=4, probe=2, rest=4, longest=32)
        for _ in range(4):
            gate.note(1, 2)
        assert (gate.left, gate.pause) == (4, 8)
        for _ in range(2):
            gate.note(2, 1)
        assert gate.pause == 8, "a probe is too little to go by"
        for _ in range(2):
            gate.note(2, 1)
        assert gate.pause == 4

    def test_throughput_forgets(self) -> None:
        recent = Throughput(window=10)
        for _ in range(60):
            recent.note(3, 1)
        assert recent.rate == pytest.approx(3, rel=0.01)
        assert recent.profit(1) == pytest.approx(2, rel=0.02)

    def test_a_rounds_time_is_its_forwards(self) -> None:
        prices = machine_costs(after(0, 0, level_cost=0.2, row_cost=0.05))
        assert prices.steps(PastRound(10, 4, 1), "both") == pytest.approx(1 + 0.8 + 0.5)
        assert prices.steps(PastRound(10, 4, 1), "lookup") == pytest.approx(1 + 0.5)

"""The fixed tree and the three phases choose as the plan says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from specgym.controllers.registry import make_controller
from specgym.controllers.rules.phases import PHASE_2, HistoryController, StaticController, fixed_tree
from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import ParameterError
from specgym.env.tree.growth import Candidates, grow_tree
from specgym.env.tree.parameters import PLAIN, SOURCES, TreeParameters
from specgym.env.tree.tree import TokenTree
from tests.support.made_rounds import FIRST, after


def even_draft(tree: TokenTree, nodes: IntArray, k: int) -> Candidates:
    """Eight candidates, all equally likely, after every node."""
    tokens, log_probs = np.tile(np.arange(k), (len(nodes), 1)), np.full((len(nodes), k), np.log(1 / 8))
    return Candidates(tokens, log_probs, np.full(len(nodes), 1 / 8))


class TestStatic:
    def test_plain_decoding_never_drafts(self) -> None:
        assert make_controller("autoregressive").act(FIRST) == PLAIN

    @pytest.mark.parametrize(
        ("branch", "depth", "nodes"), [(1, 5, 5), (2, 4, 2 + 4 + 8 + 16), (3, 3, 3 + 9 + 27), (4, 1, 4)]
    )
    def test_a_fixed_tree_is_complete_however_unsure_the_draft(self, branch: int, depth: int, nodes: int) -> None:
        parameters = fixed_tree(branch, depth).act(FIRST)
        tree = grow_tree(0, parameters, even_draft)
        assert len(tree.likeliest(parameters.node_budget)) == len(tree) == 1 + nodes
        assert np.bincount(tree.depth).tolist() == [branch**level for level in range(depth + 1)]

    def test_a_fixed_tree_obeys_its_node_budget(self) -> None:
        parameters = fixed_tree(4, 4, node_budget=20).act(FIRST)
        assert len(grow_tree(0, parameters, even_draft).likeliest(parameters.node_budget)) == 21

    def test_phase_1_is_equally_deep_everywhere_and_phase_2_deepens_likely_branches(self) -> None:
        def leaves(name: str, odds: list[float]) -> set[int]:
            def draft(tree: TokenTree, nodes: IntArray, k: int) -> Candidates:
                tokens, log_probs = np.tile(np.arange(k), (len(nodes), 1)), np.log(np.tile(odds, (len(nodes), 1)))
                return Candidates(tokens, log_probs, np.full(len(nodes), odds[0]))

            tree = grow_tree(0, make_controller(name).act(FIRST), draft)
            return set(tree.depth[np.setdiff1d(np.arange(len(tree)), tree.parent)].tolist())

        unsure, sure = [0.75, 0.2, 0.03, 0.02], [0.95, 0.03, 0.01, 0.01]
        assert leaves("confidence", unsure) == leaves("confidence", sure) == {4}
        assert leaves("dynamic_depth", unsure) == {2, 3, 4}  # 0.2 * 0.2 is under 0.1
        assert leaves("dynamic_depth", sure) == {7}  # 0.95^6 is over 0.7, 0.95^7 is not

    @pytest.mark.parametrize("source", SOURCES)
    @pytest.mark.parametrize("name", ["autoregressive", "fixed_tree", "confidence", "dynamic_depth", "history"])
    def test_every_rule_uses_the_source_that_it_is_given(self, name: str, source: str) -> None:
        chosen = make_controller(f"{name}:source={source}").act(FIRST)
        assert chosen == dataclasses.replace(make_controller(name).act(FIRST), source=source)  # type: ignore[arg-type]

    def test_a_static_controller_ignores_the_observation(self) -> None:
        controller = StaticController(PHASE_2)
        assert {controller.act(after(accepted, 4)) for accepted in range(5)} == {PHASE_2}


class TestHistoryByRound:
    def feed(self, controller: HistoryController, *rounds: tuple[int, int]) -> TreeParameters:
        for accepted, depth in rounds:
            controller.act(after(accepted, depth))
        return controller.parameters

    def test_it_starts_as_phase_2_and_waits_for_five_observations(self) -> None:
        controller = HistoryController()
        assert controller.act(FIRST) == PHASE_2
        assert self.feed(controller, *[(4, 4)] * 4) == PHASE_2
        assert self.feed(controller, (4, 4)) != PHASE_2

    def test_it_gets_bolder_over_eight_tenths_and_more_careful_under_six(self) -> None:
        bolder = self.feed(HistoryController(), *[(9, 10)] * 5)
        assert (bolder.base_depth, bolder.high_confidence) == (5, 0.75)
        careful = self.feed(HistoryController(), *[(1, 2)] * 5)
        assert (careful.base_depth, careful.high_confidence) == (3, 0.85)
        for parameters in (bolder, careful):
            assert dataclasses.replace(parameters, base_depth=4, high_confidence=0.8) == PHASE_2

    @pytest.mark.parametrize("accepted", [6, 7, 8])
    def test_within_the_band_nothing_changes_the_borders_included(self, accepted: int) -> None:
        assert self.feed(HistoryController(), *[(accepted, 10)] * 15) == PHASE_2

    def test_the_mean_of_the_rounds_decides(self) -> None:
        assert self.feed(HistoryController(), (0, 4), *[(4, 4)] * 3, (2, 4)) == PHASE_2  # 0.7 on average
        assert self.feed(HistoryController(), (0, 4), *[(4, 4)] * 2, (2, 4), (1, 4)) != PHASE_2

    def test_rounds_without_a_tree_do_not_count(self) -> None:
        assert self.feed(HistoryController(), *[(4, 4), (0, 0)] * 4) == PHASE_2

    def test_it_stays_within_its_bounds_and_on_its_steps(self) -> None:
        controller = HistoryController()
        seen = [self.feed(controller, (8, 8)) for _ in range(30)]
        seen += [self.feed(controller, (0, 8)) for _ in range(40)]
        assert {parameters.base_depth for parameters in seen} == set(range(2, 11))
        assert {parameters.high_confidence for parameters in seen} == {round(0.5 + step / 20, 6) for step in range(10)}
        assert seen[29].base_depth == 10
        assert seen[-1].base_depth == 2
        assert (seen[29].high_confidence, seen[-1].high_confidence) == (0.5, 0.95)

    def test_the_max_depth_follows_the_base_depth_and_never_falls_under_phase_2s(self) -> None:
        controller = HistoryController()
        for rounds in ([(8, 8)] * 15, [(0, 8)] * 25):
            parameters = self.feed(controller, *rounds)
            assert parameters.max_depth == max(PHASE_2.max_depth, parameters.base_depth)
        controller = HistoryController()
        assert self.feed(controller, *[(8, 8)] * 15).max_depth == 10

    def test_rounds_more_than_ten_back_are_forgotten(self) -> None:
        spoilt, clean = HistoryController(), HistoryController()
        self.feed(spoilt, *[(0, 4)] * 4)
        for controller in (spoilt, clean):
            self.feed(controller, *[(7, 10)] * 10)
            controller.parameters = PHASE_2
            self.feed(controller, (7, 10))
        assert spoilt.parameters == clean.parameters == PHASE_2
        remembering = HistoryController(window=15)
        self.feed(remembering, *[(0, 4)] * 4, *[(7, 10)] * 10)
        remembering.parameters = PHASE_2
        assert self.feed(remembering, (7, 10)) != PHASE_2, "the test would be vacuous"

    def test_a_new_request_starts_anew(self) -> None:
        controller = HistoryController()
        self.feed(controller, *[(4, 4)] * 9)
        controller.reset()
        assert controller.act(FIRST) == PHASE_2
        assert self.feed(controller, *[(4, 4)] * 4) == PHASE_2

    def test_the_source_never_changes(self) -> None:
        controller = HistoryController(source="both")
        seen = [self.feed(controller, rounds) for rounds in [(8, 8)] * 9 + [(0, 8)] * 9]
        controller.reset()
        assert {parameters.source for parameters in [*seen, controller.act(FIRST)]} == {"both"}
        assert len(set(seen)) > 5, "the test would be vacuous"

    def test_its_settings_are_used(self) -> None:
        eager = HistoryController(patience=1, depth_step=3, threshold_step=0.1)
        assert self.feed(eager, (4, 4)).base_depth == 7
        assert eager.parameters.high_confidence == 0.7
        assert self.feed(HistoryController(target=0.3), *[(1, 2)] * 5).base_depth == 5
        assert self.feed(HistoryController(band=0.3), *[(4, 4)] * 5) == PHASE_2


class TestHistoryByRequest:
    def request(self, controller: HistoryController, *rounds: tuple[int, int]) -> set[TreeParameters]:
        """Plays a request and returns the parameters it was played with."""
        controller.reset()
        return {controller.act(after(accepted, depth)) for accepted, depth in [(0, 0), *rounds]}

    def test_it_changes_only_between_requests_after_five_of_them(self) -> None:
        controller = HistoryController("request")
        for _ in range(5):
            assert self.request(controller, *[(4, 4)] * 20) == {PHASE_2}
        (bolder,) = self.request(controller, *[(0, 4)] * 20)
        assert (bolder.base_depth, bolder.high_confidence) == (5, 0.75)

    def test_it_remembers_across_requests(self) -> None:
        controller = HistoryController("request")
        for _ in range(8):
            self.request(controller, (4, 4))
        assert self.request(controller, (4, 4)) == {controller.parameters}
        assert controller.parameters.base_depth > 5

    def test_a_request_counts_by_all_its_tokens(self) -> None:
        controller = HistoryController("request", patience=1)
        self.request(controller, (8, 8), (0, 1), (0, 1))  # 8 of 10, though two rounds of three failed
        (parameters,) = self.request(controller)
        assert parameters == PHASE_2
        self.request(controller, (1, 1), (1, 1), (0, 8))
        (parameters,) = self.request(controller)
        assert parameters.base_depth == 3

    def test_a_request_without_a_tree_does_not_count(self) -> None:
        controller = HistoryController("request", patience=1)
        self.request(controller)
        assert self.request(controller) == {PHASE_2}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"adjust": "weekly"}, r"adjust must be 'round' or 'request'; got 'weekly'"),
            ({"patience": 11}, r"patience must be within 1 and window; got 11 and 10"),
            ({"patience": 0}, r"got 0 and 10"),
            ({"window": 3}, r"got 5 and 3"),
        ],
    )
    def test_settings_at_odds_are_refused(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ParameterError, match=message):
            HistoryController(**options)  # type: ignore[arg-type]

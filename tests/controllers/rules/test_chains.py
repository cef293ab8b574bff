"""The published rules for chains decide as their papers say."""

from __future__ import annotations

import math

from specgym.controllers.registry import make_controller
from specgym.env.tree.parameters import TreeParameters
from tests.support.made_rounds import FIRST, after, grown


def length(parameters: TreeParameters) -> int:
    """Checks that the tree is a chain, and returns its length."""
    assert parameters.max_branch == 1
    assert parameters.base_depth == parameters.max_depth
    return parameters.max_depth


class TestHeuristic:
    def test_the_length_grows_by_two_after_a_chain_accepted_whole_and_shrinks_by_one_otherwise(self) -> None:
        rule = make_controller("heuristic")
        rounds = [FIRST, after(5, 5), after(6, 7), after(0, 6), after(5, 5)]
        assert [length(rule.act(seen)) for seen in rounds] == [5, 7, 6, 5, 7]

    def test_it_stays_within_one_and_its_longest(self) -> None:
        rule = make_controller("heuristic:longest=8")
        assert [length(rule.act(after(5, 5))) for _ in range(3)] == [7, 8, 8]
        assert [length(rule.act(after(0, 5))) for _ in range(9)][-3:] == [1, 1, 1]

    def test_it_goes_on_with_the_next_request_unless_it_is_transient(self) -> None:
        for transient, expected in (("false", 7), ("true", 5)):
            rule = make_controller(f"heuristic:transient={transient}")
            rule.act(after(5, 5))
            rule.reset()
            assert length(rule.act(FIRST)) == expected

    def test_plain_rounds_change_nothing(self) -> None:
        rule = make_controller("heuristic")
        assert [length(rule.act(after(0, 0))) for _ in range(3)] == [5, 5, 5]


class TestStopping:
    def test_confidence_stop_ends_with_the_first_unlikely_token(self) -> None:
        sure, unsure = [0.9, 0.1], [0.39, 0.31, 0.3]
        assert grown("confidence_stop", sure, sure, unsure, sure).depth.max() == 3
        assert grown("confidence_stop:threshold=0.38:depth=5", sure, sure, unsure, sure).depth.max() == 5

    def test_svip_ends_where_the_square_root_of_the_entropy_is_over_its_threshold(self) -> None:
        sure, unsure = [0.99, 0.01], [0.7, 0.15, 0.15]
        root = math.sqrt(-(0.7 * math.log(0.7) + 0.3 * math.log(0.15)))
        assert grown(f"svip:threshold={root - 0.01}", sure, unsure, sure).depth.max() == 2
        assert grown(f"svip:threshold={root + 0.01}", sure, unsure, sure).depth.max() == 10

    def test_adaedl_ends_where_its_bound_is_under_its_threshold(self) -> None:
        sure, unsure = [0.99, 0.01], [0.7, 0.15, 0.15]
        entropy = -(0.7 * math.log(0.7) + 0.3 * math.log(0.15))
        bound = 1 - math.sqrt(0.2 * entropy)
        assert grown(f"adaedl:threshold={bound + 0.01}", sure, unsure, sure).depth.max() == 2
        assert grown(f"adaedl:threshold={bound - 0.01}", sure, unsure, sure).depth.max() == 10

    def test_adaedl_gets_stricter_while_too_little_is_accepted_and_bolder_while_enough_is(self) -> None:
        rule = make_controller("adaedl")
        bounds = [rule.act(after(0, 4)).max_entropy for _ in range(50)]
        assert bounds == sorted(bounds, reverse=True)
        assert bounds[-1] < bounds[0]
        bounds = [rule.act(after(4, 4)).max_entropy for _ in range(50)]
        assert bounds[-1] > bounds[10]
        rule.reset()
        assert rule.act(FIRST).max_entropy == bounds[-1], "the next request goes on"


class TestGammaTune:
    def test_the_length_follows_what_is_accepted(self) -> None:
        rule = make_controller("gammatune")
        assert length(rule.act(FIRST)) == 4
        falling = [length(rule.act(after(0, 4))) for _ in range(20)]
        assert falling == sorted(falling, reverse=True)
        assert falling[-1] == 1
        rising = [length(rule.act(after(depth, depth))) for depth in [*falling[-1:], *range(1, 60)]]
        assert rising[-1] == 10

    def test_it_settles_one_past_a_steady_acceptance(self) -> None:
        rule = make_controller("gammatune")
        assert [length(rule.act(after(3, 8))) for _ in range(30)][-1] == 4

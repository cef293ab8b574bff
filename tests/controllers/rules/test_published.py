"""The published rules decide as their papers say, on rounds made up for them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from specgym.controllers.registry import make_controller
from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import ParameterError
from specgym.env.tree.growth import Candidates, grow_tree
from specgym.env.tree.observation import Observation, PastRound
from specgym.env.tree.parameters import TreeParameters
from specgym.env.tree.tree import TokenTree


def after(accepted: int, depth: int, drafted: int | None = None, **changes: float) -> Observation:
    """What is seen after a round of a tree of `depth`, by default a chain, with that many tokens accepted."""
    past = PastRound(depth if drafted is None else drafted, depth, accepted)
    seen = Observation(9, 4, 40, past.drafted, past.depth, past.accepted, recent=(past,))
    return dataclasses.replace(seen, **changes)  # type: ignore[arg-type]


FIRST = Observation(position=9, generated=4, remaining=40)


class Levels:
    """A draft whose distribution depends on the depth alone; the last one goes on for ever."""

    def __init__(self, *levels: list[float]) -> None:
        self.levels = levels

    def __call__(self, tree: TokenTree, nodes: IntArray, k: int) -> Candidates:
        odds = np.array(self.levels[min(int(tree.depth[nodes[0]]), len(self.levels) - 1)])
        entropy = -(odds * np.log(odds)).sum()
        log_probs = np.tile(np.log(odds[:k]), (len(nodes), 1))
        tokens = np.tile(np.arange(log_probs.shape[1]), (len(nodes), 1))
        return Candidates(tokens, log_probs, np.exp(log_probs[:, 0]), entropy=np.full(len(nodes), entropy))


def length(parameters: TreeParameters) -> int:
    """The length of a chain, which it must be."""
    assert parameters.max_branch == 1
    assert parameters.base_depth == parameters.max_depth
    return parameters.max_depth


def grown(name: str, *levels: list[float]) -> TokenTree:
    """The tree that a rule verifies first."""
    parameters = make_controller(name).act(FIRST)
    tree = grow_tree(0, parameters, Levels(*levels))
    return tree.select(tree.likeliest(parameters.node_budget))


class TestHeuristic:
    def test_a_chain_accepted_whole_is_followed_by_two_tokens_more_any_other_by_one_fewer(self) -> None:
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

    def test_plain_rounds_say_nothing(self) -> None:
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


class TestTrees:
    def test_eagle2_expands_the_likeliest_of_a_level_and_keeps_the_likeliest_of_all(self) -> None:
        odds = [0.4, 0.3, 0.2, 0.1]
        whole = grow_tree(0, make_controller("eagle2:width=2").act(FIRST), Levels(odds))
        expanded = np.unique(whole.parent[1:])
        assert np.bincount(whole.depth[expanded]).tolist()[:3] == [1, 2, 2]
        kept = grown("eagle2:width=2:total=5", odds)
        assert len(kept) == 6
        assert kept.reach[1:].min() >= np.sort(whole.reach)[-6]

    def test_opt_tree_goes_deeper_while_a_level_brings_more_than_delta(self) -> None:
        odds = [0.5, 0.3]  # levels bring 0.8, 0.64, 0.512
        assert grown("opt_tree:delta=0.7", odds).depth.max() == 2
        assert grown("opt_tree:delta=0.6", odds).depth.max() == 3

    def test_opt_tree_keeps_the_nodes_of_most_reach(self) -> None:
        tree = grown("opt_tree:budget=3:delta=0", [0.6, 0.3, 0.1])
        np.testing.assert_allclose(np.sort(tree.reach[1:]), [0.3, 0.36, 0.6])


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("heuristic:start=11", r"start must be within 1 and longest; got 11 and 10"),
        ("gammatune:start=0", r"got 0 and 10"),
        ("gammatune:rate=0", r"rate must be over 0 and at most 1.*got 0.0"),
        ("gammatune:slack=-1", r"got 0.3 and -1.0"),
        ("svip:threshold=0", r"threshold must be over 0.*got 0.0"),
        ("svip:threshold=nan", r"threshold must be over 0.*got nan"),
        ("confidence_stop:threshold=2", r"min_confidence=2.0"),
        ("adaedl:threshold=1", r"threshold must be 0 or more and under 1; got 1.0"),
        ("adaedl:inertia=nan", r"inertia must be 0 or more and under 1; got nan"),
        ("adaedl:gamma=0", r"gamma must be over 0; got 0.0"),
        ("eagle2:total=0", r"node_budget=0"),
        ("opt_tree:delta=-1", r"min_level_reach=-1.0"),
        ("heuristic:source=draft", r"source to be one of model, lookup, both; got source=draft"),
        ("tapout:exploration=-1", r"exploration of 0 or more; got 4 and -1.0"),
        ("banditspec:exploration=nan", r"got 6 and nan"),
        ("goodput:price=-1", r"price must be 0 or more.*got price=-1.0"),
        ("goodput:capture=0", r"capture over 0.*capture=0.0"),
        ("goodput:source=draft", r"one of auto, model, lookup, both; got 'draft'"),
        ("goodput:window=0", r"window must be 1 or more; got 0"),
        ("goodput:node_budget=0", r"node_budget=0"),
        ("history+guarded:probe=17", r"probe must be within 1 and window; got 17 and 16"),
        ("history+guarded:rest=0", r"rest must be within 1 and longest; got 0 and 512"),
    ],
)
def test_options_out_of_their_range_are_refused(specification: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make_controller(specification)

"""The published tree rules decide as their papers say."""

from __future__ import annotations

import numpy as np

from specgym.controllers.registry import make_controller
from specgym.env.tree.growth import grow_tree
from tests.support.made_rounds import FIRST, Levels, grown


class TestTrees:
    def test_eagle2_expands_the_likeliest_of_a_level_and_keeps_the_likeliest_of_all(self) -> None:
        odds = [0.4, 0.3, 0.2, 0.1]
        whole = grow_tree(0, make_controller("eagle2:width=2").act(FIRST), Levels(odds))
        expanded = np.unique(whole.parent[1:])
        assert np.bincount(whole.depth[expanded]).tolist()[:3] == [1, 2, 2]
        kept = grown("eagle2:width=2:total=5", odds)
        assert len(kept) == 6
        assert kept.reach[1:].min() >= np.sort(whole.reach)[-6]

    def test_opt_tree_goes_deeper_while_a_level_gains_more_than_delta(self) -> None:
        odds = [0.5, 0.3]  # levels gain 0.8, 0.64, 0.512
        assert grown("opt_tree:delta=0.7", odds).depth.max() == 2
        assert grown("opt_tree:delta=0.6", odds).depth.max() == 3

    def test_opt_tree_keeps_the_nodes_of_most_reach(self) -> None:
        tree = grown("opt_tree:budget=3:delta=0", [0.6, 0.3, 0.1])
        np.testing.assert_allclose(np.sort(tree.reach[1:]), [0.3, 0.36, 0.6])

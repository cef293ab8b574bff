"""The growth rule: which nodes are expanded, with how many children."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgym.env.common.arrays import FloatArray, IntArray
from specgym.env.tree.growth import Candidates, grow_tree
from specgym.env.tree.parameters import PLAIN, TreeParameters
from specgym.env.tree.tree import TokenTree
from tests.support.tiny_models import tree_parameters


class TableDraft:
    """A draft whose candidates after a node depend on the node's depth alone, or on its path by chance.

    Args:
        probabilities: of the candidates at each depth, best first; the last entry serves all further depths.
        seed: if given, each path shuffles the odds in its own way, and some places are empty.
    """

    def __init__(self, probabilities: list[list[float]], seed: int | None = None) -> None:
        self.log_probs = [np.log(row) for row in probabilities]
        self.seed = seed
        self.calls: list[tuple[list[int], int]] = []
        self.offers: dict[int, tuple[FloatArray, IntArray]] = {}
        self.entropy: dict[int, float] = {}

    def __call__(self, tree: TokenTree, nodes: IntArray, k: int) -> Candidates:
        self.calls.append((nodes.tolist(), k))
        for node in nodes.tolist():
            self.offers[node] = self._offer(tree, node)
            odds = np.exp(self.offers[node][0])
            self.entropy[node] = float(-(odds * np.log(np.where(odds > 0, odds, 1))).sum())
        log_probs = np.stack([self.offers[node][0][:k] for node in nodes.tolist()])
        tokens = np.stack([self.offers[node][1][:k] for node in nodes.tolist()])
        entropy = np.array([self.entropy[node] for node in nodes.tolist()])
        return Candidates(tokens, log_probs, np.exp(log_probs[:, 0]), entropy=entropy)

    def _offer(self, tree: TokenTree, node: int) -> tuple[FloatArray, IntArray]:
        if self.seed is None:
            log_probs = self.log_probs[min(int(tree.depth[node]), len(self.log_probs) - 1)]
            return log_probs, np.arange(len(log_probs))
        path = tree.token[tree.ancestors[node]].tolist()
        random = np.random.default_rng([self.seed, *path])
        odds = -np.sort(-random.dirichlet(np.full(6, 0.4)))
        offered = np.arange(6) < random.integers(0, 7)
        return np.where(offered, np.log(odds), -np.inf), random.permutation(6)


def children(tree: TokenTree, node: int) -> IntArray:
    return np.flatnonzero(tree.parent == node)


@pytest.mark.parametrize(
    ("confidence", "expected"), [(0.99, 1), (0.81, 1), (0.8, 2), (0.5, 2), (0.3, 2), (0.29, 4), (0.22, 4)]
)
def test_the_surer_the_draft_the_fewer_children_and_both_thresholds_count_as_neither(
    confidence: float, expected: int
) -> None:
    draft = TableDraft([[confidence, *[(1 - confidence) / 5] * 5]])
    tree = grow_tree(0, TreeParameters(base_depth=1, max_depth=1), draft)
    assert len(children(tree, 0)) == expected


def test_confidence_sets_the_number_of_children_and_probabilities_set_the_depth() -> None:
    def draft(tree: TokenTree, nodes: IntArray, k: int) -> Candidates:
        log_probs = np.log(np.tile([0.6, 0.2, 0.1, 0.1], (len(nodes), 1)))
        return Candidates(np.tile(np.arange(4), (len(nodes), 1)), log_probs, np.where(nodes == 0, 0.9, 0.1))

    tree = grow_tree(0, TreeParameters(base_depth=2, max_depth=2, early_stop=0.5), draft)
    assert [len(children(tree, node)) for node in (0, 1)] == [1, 4], "by confidences of 0.9 and 0.1"
    np.testing.assert_allclose(tree.reach[1:], [0.6, 0.36, 0.12, 0.06, 0.06])
    assert len(grow_tree(0, TreeParameters(base_depth=2, max_depth=2, early_stop=0.7), draft)) == 2


def test_nodes_remember_whether_lookup_alone_proposed_them() -> None:
    def draft(tree: TokenTree, nodes: IntArray, k: int) -> Candidates:
        log_probs = np.log(np.tile([0.5, 0.3], (len(nodes), 1)))
        from_lookup = np.stack([nodes > 0, np.full(len(nodes), True)], axis=1)
        return Candidates(np.tile([4, 5], (len(nodes), 1)), log_probs, np.full(len(nodes), 0.5), from_lookup)

    tree = grow_tree(0, TreeParameters(base_depth=2, max_depth=2), draft)
    assert tree.from_lookup.tolist() == [False, False, True, True, True, True, True]
    assert tree.select(np.array([0, 1, 4])).from_lookup.tolist() == [False, False, True]
    assert not grow_tree(0, TreeParameters(), TableDraft([[0.9, 0.1]])).from_lookup.any()


def test_reach_at_the_early_stop_is_expanded_and_below_it_is_not() -> None:
    draft = TableDraft([[0.5, 0.25, 0.125]])
    half = float(np.exp(np.log(0.5)))
    shape = {"base_depth": 2, "max_depth": 2, "min_branch": 3, "mid_branch": 3, "max_branch": 3}
    tree = grow_tree(0, TreeParameters(**shape, early_stop=half), draft)
    assert [len(children(tree, node)) for node in (1, 2, 3)] == [3, 0, 0]
    tree = grow_tree(0, TreeParameters(**shape, early_stop=np.nextafter(half, 1)), draft)
    assert len(tree) == 4


def test_from_the_base_depth_on_only_reach_over_deep_expand_is_expanded() -> None:
    draft = TableDraft([[0.9, 0.1]])
    shape = {"base_depth": 2, "max_depth": 9, "min_branch": 2, "mid_branch": 2, "max_branch": 2}
    tree = grow_tree(0, TreeParameters(**shape, deep_expand=0.7), draft)
    # 0.9^2 and 0.9^3 are over 0.7 and 0.9^4 is not: the likeliest branch stops at depth 4.
    expanded = np.unique(tree.parent[1:])
    assert tree.depth[expanded].tolist() == [0, 1, 1, 2, 3]
    assert tree.depth.max() == 4
    border = float(tree.reach[tree.depth == 2].max())
    assert grow_tree(0, TreeParameters(**shape, deep_expand=border), draft).depth.max() == 2
    assert grow_tree(0, TreeParameters(**shape, deep_expand=np.nextafter(border, 0)), draft).depth.max() == 3


def test_a_certain_branch_grows_to_the_max_depth_and_not_past_it() -> None:
    tree = grow_tree(0, TreeParameters(base_depth=1, max_depth=5, deep_expand=0.0), TableDraft([[1.0]]))
    assert tree.depth.tolist() == [0, 1, 2, 3, 4, 5]


def test_the_frontier_keeps_the_likeliest_of_a_level() -> None:
    draft = TableDraft([[0.4, 0.35, 0.25], [0.6, 0.4]])
    shape = {"base_depth": 2, "max_depth": 2, "min_branch": 3, "mid_branch": 3, "max_branch": 3}
    tree = grow_tree(0, TreeParameters(**shape, frontier_width=2), draft)
    assert [len(children(tree, node)) for node in (1, 2, 3)] == [2, 2, 0]


def test_a_node_under_the_least_reach_is_left_out() -> None:
    draft = TableDraft([[0.5, 0.3, 0.2], [0.9, 0.1]])
    shape = {"base_depth": 2, "max_depth": 2, "min_branch": 3, "mid_branch": 3, "max_branch": 3}
    tree = grow_tree(0, TreeParameters(**shape, min_reach=0.25), draft)
    np.testing.assert_allclose(tree.reach[1:], [0.5, 0.3, 0.45, 0.27])
    assert draft.calls[1][0] == [1, 2], "what is not in the tree is not expanded"


def test_a_node_is_not_expanded_if_it_is_unlikely_given_its_parent() -> None:
    draft = TableDraft([[0.9, 0.1], [0.39, 0.2], [1.0]])
    shape = {"base_depth": 9, "max_depth": 9, "min_branch": 1, "mid_branch": 1, "max_branch": 1}
    assert grow_tree(0, TreeParameters(**shape, min_confidence=0.4), draft).depth.max() == 2
    assert grow_tree(0, TreeParameters(**shape, min_confidence=0.38), draft).depth.max() == 9


def test_children_of_an_uncertain_distribution_are_not_expanded() -> None:
    draft = TableDraft([[0.9, 0.1], [0.5, 0.5], [1.0]])
    shape = {"base_depth": 9, "max_depth": 9, "min_branch": 1, "mid_branch": 1, "max_branch": 1}
    assert grow_tree(0, TreeParameters(**shape, max_entropy=0.6), draft).depth.max() == 2
    assert grow_tree(0, TreeParameters(**shape, max_entropy=0.7), draft).depth.max() == 9
    assert grow_tree(0, TreeParameters(**shape), draft).depth.max() == 9


def test_entropy_does_not_bound_nodes_of_lookup_alone() -> None:
    def draft(tree: TokenTree, nodes: IntArray, k: int) -> Candidates:
        log_probs, unsure = np.log(np.tile([0.5, 0.3], (len(nodes), 1))), np.ones(len(nodes))
        from_lookup = np.tile([False, True], (len(nodes), 1))
        return Candidates(np.tile([4, 5], (len(nodes), 1)), log_probs, unsure, from_lookup, unsure)

    tree = grow_tree(0, TreeParameters(base_depth=3, max_depth=3, min_branch=2, max_entropy=0.5), draft)
    assert set(tree.token[np.unique(tree.parent[1:])].tolist()) == {0, 5}
    assert tree.depth.max() == 3


def test_a_level_is_drafted_only_above_the_least_level_reach() -> None:
    draft = TableDraft([[0.4, 0.3], [0.5, 0.4]])  # reach of the levels below the root: 0.7, 0.63, 0.567
    shape = {"base_depth": 9, "max_depth": 9, "min_branch": 2, "mid_branch": 2, "max_branch": 2}
    assert [
        grow_tree(0, TreeParameters(**shape, min_level_reach=least), draft).depth.max() for least in (0.71, 0.69)
    ] == [
        1,
        2,
    ]
    few = TreeParameters(**shape, min_level_reach=0.5, frontier_width=2)  # 0.7, 0.2 + 0.16
    assert grow_tree(0, few, draft).depth.max() == 2


@pytest.mark.parametrize("parameters", [PLAIN, TreeParameters(base_depth=0, max_depth=3, deep_expand=0.0)])
def test_plain_decoding_drafts_nothing_and_never_calls_the_draft(parameters: TreeParameters) -> None:
    draft = TableDraft([[0.9, 0.1]])
    assert len(grow_tree(4, parameters, draft)) == 1
    assert not draft.calls


def test_empty_places_never_enter_the_tree() -> None:
    def two_offers_then_none(tree: TokenTree, nodes: IntArray, k: int) -> Candidates:
        log_probs = np.full((len(nodes), k), -np.inf)
        if not tree.depth[nodes].any():
            log_probs[:, :2] = np.log([0.2, 0.1])
        return Candidates(np.tile(np.arange(k), (len(nodes), 1)), log_probs, np.exp(log_probs[:, 0]))

    tree = grow_tree(4, TreeParameters(), two_offers_then_none)
    assert tree.token.tolist() == [4, 0, 1]


@given(tree_parameters(), st.integers(0, 10_000))
def test_every_node_is_there_because_the_parameters_say_so(parameters: TreeParameters, seed: int) -> None:
    draft = TableDraft([[1.0]], seed)
    tree = grow_tree(0, parameters, draft)
    reach, expanded = tree.reach, [node for nodes, _ in draft.calls for node in nodes]
    assert tree.depth.max() <= parameters.max_depth
    assert np.isfinite(tree.log_prob).all()

    # One call a level, from the root down, each for the most nodes allowed.
    assert [set(tree.depth[nodes]) for nodes, _ in draft.calls] == [{depth} for depth in range(len(draft.calls))]
    assert all(len(nodes) <= parameters.frontier_width for nodes, _ in draft.calls)
    assert all(k == parameters.max_branch for _, k in draft.calls)

    # A node has the first of its candidates as children, as many as its confidence gives.
    for node in range(len(tree)):
        if node not in expanded:
            assert not children(tree, node).size
            continue
        log_probs, tokens = draft.offers[node]
        confidence = np.exp(log_probs[0])
        wanted = parameters.mid_branch
        if confidence > parameters.high_confidence:
            wanted = parameters.min_branch
        elif confidence < parameters.low_confidence:
            wanted = parameters.max_branch
        wanted = min(wanted, int((np.exp(tree.log_reach[node] + log_probs) >= (parameters.min_reach or 1e-300)).sum()))
        assert tree.token[children(tree, node)].tolist() == tokens[:wanted].tolist()
        np.testing.assert_array_equal(tree.log_prob[children(tree, node)], log_probs[:wanted])

    by_depth = [[other for other in expanded if tree.depth[other] == depth] for depth in range(tree.depth.max() + 1)]
    assert all(reach[level].sum() >= parameters.min_level_reach for level in by_depth[1:] if level)
    assert all(reach[1:] >= parameters.min_reach)

    # A node below the root is expanded if and only if it is likely enough, unless likelier ones fill the frontier.
    for node in range(1, len(tree)):
        depth = tree.depth[node]
        likely = reach[node] >= parameters.early_stop
        if depth >= parameters.base_depth:
            likely &= reach[node] > parameters.deep_expand
        likely &= np.exp(tree.log_prob[node]) >= parameters.min_confidence
        likely &= not 0 < parameters.max_entropy < draft.entropy[int(tree.parent[node])]
        if node in expanded:
            assert likely
        elif likely and depth < parameters.max_depth:
            level = by_depth[depth]
            full = len(level) == parameters.frontier_width and reach[level].min() >= reach[node]
            assert full or (not level and parameters.min_level_reach > 0)

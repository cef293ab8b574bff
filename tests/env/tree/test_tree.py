"""Token trees: their arrays agree with following parents one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgym.env.tree.tree import TokenTree


def build(parents: list[int], tokens: list[int], log_probs: list[float]) -> TokenTree:
    """A tree with the given nodes under a root of token 0, added one by one."""
    tree = TokenTree(0)
    for parent, token, log_prob in zip(parents, tokens, log_probs, strict=True):
        tree.add(np.array([parent]), np.array([token]), np.array([log_prob]))
    return tree


@st.composite
def trees(draw: st.DrawFn, most: int = 14) -> TokenTree:
    """Any tree whose siblings differ; cousins may well hold the same token, and many nodes are equally likely."""
    tree, taken = TokenTree(0), set()
    for node in range(1, draw(st.integers(0, most)) + 1):
        parent = draw(st.integers(0, len(tree) - 1))
        token = draw(st.integers(0, 2))
        if (parent, token) in taken:
            continue
        taken.add((parent, token))
        log_prob = draw(st.sampled_from([0.0, -0.5, -1.0, -node / 7]))
        tree.add(np.array([parent]), np.array([token]), np.array([log_prob]))
    return tree


def line(tree: TokenTree, node: int) -> list[int]:
    """The nodes from the root to `node`, found by following parents."""
    found = [node]
    while tree.parent[found[0]] >= 0:
        found.insert(0, int(tree.parent[found[0]]))
    return found


@given(trees())
def test_ancestors_depth_and_reach_are_those_of_the_line_of_parents(tree: TokenTree) -> None:
    for node in range(len(tree)):
        above = line(tree, node)
        assert np.flatnonzero(tree.ancestors[node]).tolist() == above
        assert tree.depth[node] == len(above) - 1
        assert tree.reach[node] == pytest.approx(np.prod(np.exp(tree.log_prob[above])))


def test_a_level_added_at_once_equals_its_nodes_added_one_by_one() -> None:
    single = build([0, 0, 2, 1], [5, 6, 7, 8], [-1.0, -2.0, -0.5, -0.25])
    level = TokenTree(0)
    first = level.add(np.array([0, 0]), np.array([5, 6]), np.array([-1.0, -2.0]))
    second = level.add(np.array([2, 1]), np.array([7, 8]), np.array([-0.5, -0.25]))
    assert (first.tolist(), second.tolist()) == ([1, 2], [3, 4])
    for name in ("token", "parent", "depth", "log_prob", "log_reach", "ancestors"):
        np.testing.assert_array_equal(getattr(level, name), getattr(single, name))


@given(trees(), st.integers(1, 16))
def test_the_likeliest_nodes_hold_the_highest_reach_and_stay_connected(tree: TokenTree, budget: int) -> None:
    kept = tree.likeliest(budget).tolist()
    assert kept == sorted(set(kept))
    assert kept[0] == 0
    assert len(kept) == min(len(tree), budget + 1)
    assert all(tree.parent[node] in kept for node in kept[1:])
    dropped = np.setdiff1d(np.arange(len(tree)), kept)
    if dropped.size:
        assert tree.log_reach[kept].min() >= tree.log_reach[dropped].max()


def test_a_budget_can_cut_a_branch_in_the_middle_of_the_tree() -> None:
    tree = build([0, 0, 1, 2], [1, 2, 3, 3], [-0.1, -2.0, -0.1, -0.1])
    assert tree.likeliest(2).tolist() == [0, 1, 3]


@given(trees(), st.integers(1, 16))
def test_a_selection_keeps_every_node_as_it_was(tree: TokenTree, budget: int) -> None:
    nodes = tree.likeliest(budget)
    chosen = tree.select(nodes)
    assert len(chosen) == len(nodes)
    for new, old in enumerate(nodes):
        above = line(chosen, new)
        assert nodes[above].tolist() == line(tree, old)
        assert np.flatnonzero(chosen.ancestors[new]).tolist() == above
        for name in ("token", "depth", "log_prob", "log_reach"):
            assert getattr(chosen, name)[new] == getattr(tree, name)[old]


def test_a_selection_may_reorder_the_nodes() -> None:
    tree = build([0, 0, 2, 1], [1, 2, 3, 4], [-1.0, -2.0, -0.5, -0.25])
    chosen = tree.select(np.array([0, 2, 1, 3, 4]))
    assert chosen.token.tolist() == [0, 2, 1, 3, 4]
    assert chosen.parent.tolist() == [-1, 0, 0, 1, 2]
    assert np.flatnonzero(chosen.ancestors[3]).tolist() == [0, 1, 3]


def walk(tree: TokenTree, choices: np.ndarray) -> list[int]:
    """From the root to the child that is the target's choice, as long as there is one."""
    path = [0]
    while True:
        children = np.flatnonzero((tree.parent == path[-1]) & (tree.token == choices[path[-1]]))
        if not children.size:
            return path
        path.append(int(children[0]))


@given(trees(), st.data())
def test_the_accepted_path_is_where_a_walk_along_the_targets_choices_ends(tree: TokenTree, data: st.DataObject) -> None:
    choices = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(tree), max_size=len(tree))))
    assert tree.accepted_path(choices).tolist() == walk(tree, choices)


def test_a_right_token_under_a_wrong_parent_is_not_accepted() -> None:
    # Node 3 and node 4 both hold token 7; the target goes to node 2 and then chooses 7, so it is node 4.
    # Node 5 is its parent's right continuation, but the parent, node 3, is not on the path.
    tree = build([0, 0, 1, 2, 3], [1, 2, 7, 7, 9], [-0.1] * 5)
    assert tree.accepted_path(np.array([2, 7, 7, 9, 0, 0])).tolist() == [0, 2, 4]


def test_nothing_is_accepted_of_a_tree_that_is_only_a_root_or_all_wrong() -> None:
    assert TokenTree(3).accepted_path(np.array([3])).tolist() == [0]
    assert build([0, 1], [1, 2], [-0.1] * 2).accepted_path(np.array([2, 2, 2])).tolist() == [0]

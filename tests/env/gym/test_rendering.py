"""Pictures of a round show every node once, in its place, and whether it was accepted."""

from __future__ import annotations

import numpy as np
import pytest

from specgym.env.common.arrays import IntArray
from specgym.env.gym.rendering import draw_image, draw_text, token_names
from specgym.env.tree.rounds import FinishReason, RoundOutcome
from specgym.env.tree.tree import TokenTree
from tests.support.tiny_pair import tiny_tokenizer


def small_tree() -> TokenTree:
    """5 - (7 - 9, 8), of which 9 and 8 are lookup's."""
    tree = TokenTree(5)
    tree.add(np.zeros(2, np.int64), np.array([7, 8]), np.log([0.8, 0.1]), np.array([False, True]))
    tree.add(np.array([1]), np.array([9]), np.log([0.5]), np.array([True]))
    return tree


ACCEPTED: IntArray = np.array([1, 3])
OUTCOME = RoundOutcome((7, 9, 4), drafted=3, depth=2, accepted=2, drafted_lookup=2, accepted_lookup=1)
IDS = token_names(None)


def test_the_text_shows_the_tree_with_its_marks_probabilities_and_the_bonus_token() -> None:
    assert draw_text(small_tree(), ACCEPTED, OUTCOME, IDS).splitlines() == [
        "3 nodes to depth 2: 2 accepted, 3 committed   (* accepted, ~ by lookup alone)",
        "#5",
        "├─* #7  p=0.80 reach=0.800",
        "│  └─*~#9  p=0.50 reach=0.400",
        "└─ ~#8  p=0.10 reach=0.100",
        "+ #4  the target's own",
    ]


def test_a_text_that_ends_within_the_tree_has_no_bonus_token() -> None:
    ended = RoundOutcome((7,), 3, 2, 1, finished=FinishReason.END_OF_SEQUENCE)
    lines = draw_text(small_tree(), ACCEPTED[:1], ended, IDS).splitlines()
    assert "1 committed, end of sequence" in lines[0]
    assert not any("own" in line for line in lines)


def test_a_token_is_named_by_its_text_on_one_line() -> None:
    tokenizer = tiny_tokenizer()
    name = token_names(tokenizer)
    assert name(tokenizer.encode("a")[0]) == "'a'"
    assert name(tokenizer.encode("\n")[0]) == r"'\n'"


@pytest.mark.parametrize("tokens", ["plain", "$x_{$ \\frac", "語"])
def test_pictures_have_one_size_and_show_accepted_nodes(tokens: str) -> None:
    def name(token: int) -> str:
        return tokens

    large = TokenTree(5)
    for _ in range(6):
        leaves = np.flatnonzero(large.depth == large.depth.max()).repeat(2)
        large.add(leaves, np.arange(len(leaves)), np.full(len(leaves), np.log(0.4)))
    pictures = [
        draw_image(tree, accepted, outcome, name)
        for tree, accepted, outcome in [
            (small_tree(), ACCEPTED, OUTCOME),
            (small_tree(), ACCEPTED[:0], RoundOutcome((3,), 3, 2)),
            (TokenTree(5), ACCEPTED[:0], RoundOutcome((3,))),
            (large, np.array([1, 3]), OUTCOME),
        ]
    ]
    assert {(picture.shape, picture.dtype) for picture in pictures} == {((500, 900, 3), np.dtype(np.uint8))}
    green = [int((picture == (0x2A, 0x9D, 0x4A)).all(axis=2).sum()) for picture in pictures]
    assert (green[1], green[2]) == (0, 0)
    assert min(green[0], green[3]) > 100

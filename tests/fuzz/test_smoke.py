"""A few hundred rounds of the fuzz; `make fuzz` plays many more."""

from __future__ import annotations

import numpy as np
import pytest

from specgym.env.common.arrays import IntArray
from specgym.env.tree.tree import TokenTree
from tests.fuzz.cases import Case, Text
from tests.fuzz.drawing.controllers import Counts
from tests.fuzz.play import DifferenceError, play
from tests.fuzz.verdict import complaints, play_seed


def test_a_few_hundred_random_rounds_give_the_text_of_plain_decoding() -> None:
    counts, seed = Counts(), 0
    while counts.rounds < 300:
        result = play_seed(seed)
        assert isinstance(result, Counts), result
        counts.add(result)
        seed += 1
    assert complaints(counts, counts.rounds) == []
    assert {"greedy", "sampled", "generate", "decoder"} <= set(counts.kinds), "the test would be vacuous"


def test_an_engine_that_accepts_other_tokens_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_child(tree: TokenTree, choices: IntArray) -> IntArray:
        return np.arange(min(len(tree), 2))

    monkeypatch.setattr(TokenTree, "accepted_path", first_child)
    text = Text(1, sampled=True)
    with pytest.raises(DifferenceError, match="row 0: expected"):
        play(Case(1, draft="feature", texts=(text, text)))

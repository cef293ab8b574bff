"""A few hundred rounds of the fuzz; `make fuzz` plays many more."""

from __future__ import annotations

from tests.fuzz.drawing.controllers import Counts
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

"""Prompt lookup: what it proposes is a function of the text, and it learns from the text how often it is right."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import ParameterError
from specgym.env.drafts import LookupDraft
from specgym.env.tree.growth import Candidates
from specgym.env.tree.sampling import SamplingSettings, TokenChooser
from specgym.env.tree.tree import TokenTree
from tests.support.tiny_models import VOCABULARY

NO_NODES: IntArray = np.empty(0, np.int64)
SHORTEST, LONGEST, LATEST = 2, 16, 32

tokens = st.integers(0, 2)
texts = st.lists(tokens, min_size=25, max_size=50) | st.lists(tokens, min_size=1, max_size=12)
paths = st.lists(tokens, max_size=3)


def reading(pieces: Iterable[list[int]], **options: float) -> LookupDraft:
    """A draft that has read a text in pieces."""
    draft = LookupDraft(**options)  # type: ignore[arg-type]
    draft.start(TokenChooser(SamplingSettings(), VOCABULARY, torch.device("cpu")))
    for piece in pieces:
        draft.commit(piece, None, NO_NODES)
    return draft


def candidates(draft: LookupDraft, root: int, path: Iterable[int] = (), k: int = 4) -> Candidates:
    """A draft's candidates after its text, which ends with `root`, and a path."""
    tree, node = TokenTree(root), np.zeros(1, np.int64)
    for token in path:
        node = tree.add(node, np.array([token]), np.zeros(1))
    return draft.expand(tree, node, k)


def lookup(text: list[int], path: Iterable[int] = (), k: int = 4, **options: float) -> dict[int, float]:
    """Candidates after `text` and `path`, best first."""
    found = candidates(reading([text], **options), text[-1], path, k)
    offered = found.log_probs[0] > -math.inf
    assert found.tokens.shape == found.log_probs.shape == (1, k)
    np.testing.assert_allclose(found.confidence, np.exp(found.log_probs[:, 0]), rtol=1e-12)
    assert found.from_lookup is not None
    assert found.from_lookup[0].tolist() == offered.tolist()
    offers = list(zip(found.tokens[0, offered].tolist(), np.exp(found.log_probs[0, offered]).tolist(), strict=True))
    assert len(dict(offers)) == len(offers), "a token is offered once"
    return dict(offers)


def matches(text: list[int], ending: list[int]) -> list[tuple[int, int]]:
    """The tokens after the latest matches of `ending` in `text`, with match lengths: longest first, then latest."""
    found = []
    for end in range(len(text) - 1, 0, -1):
        lengths = [
            m for m in range(SHORTEST, LONGEST + 1) if m <= min(end, len(ending)) and text[end - m : end] == ending[-m:]
        ]
        if lengths:
            found.append((text[end], max(lengths)))
    return sorted(found[:LATEST], key=lambda match: -match[1])


def expected(text: list[int], path: list[int], k: int, strength: float) -> dict[int, float]:
    """The docstring of `LookupDraft`, computed word by word."""
    tried, right = [0] * (LONGEST + 1), [0] * (LONGEST + 1)
    for index in range(1, len(text)):
        for guess, length in matches(text[:index], text[:index])[:1]:
            tried[length] += 1
            right[length] += guess == text[index]
    p = [(right[m] + strength * m / (m + 2)) / (tried[m] + strength) for m in range(LONGEST + 1)]
    offers: dict[int, float] = {}
    for token, length in matches(text, text + path):
        if token not in offers and len(offers) < k:
            rated = (1 - sum(offers.values())) * p[length] / 2 ** len(offers)
            offers[token] = min([rated, *offers.values()])
    return offers


@given(texts, paths, st.integers(1, 4), st.sampled_from([0.5, 8.0]))
def test_it_proposes_what_its_docstring_says(text: list[int], path: list[int], k: int, strength: float) -> None:
    found, right = lookup(text, path, k, strength=strength), expected(text, path, k, strength)
    assert list(found) == list(right)
    np.testing.assert_allclose(list(found.values()), list(right.values()), rtol=1e-12)
    assert sum(found.values()) <= 1
    assert list(found.values()) == sorted(found.values(), reverse=True)


@given(texts, st.sets(st.integers(0, 50)), paths)
def test_the_rounds_that_a_text_came_in_make_no_difference(text: list[int], cuts: set[int], path: list[int]) -> None:
    bounds = [0, *sorted(cut for cut in cuts if 0 < cut < len(text)), len(text)]
    split = reading(text[start:end] for start, end in itertools.pairwise(bounds))
    whole = reading([text])
    assert split.at_root() == whole.at_root()
    found, right = candidates(split, text[-1], path), candidates(whole, text[-1], path)
    np.testing.assert_array_equal(found.tokens, right.tokens)
    np.testing.assert_array_equal(found.log_probs, right.log_probs)


@given(texts)
def test_a_new_request_forgets_the_last_text(text: list[int]) -> None:
    used, text = reading([[1, 2, 0, 1, 2, 0, 1, 2]]), [3, *text]
    used.start(TokenChooser(SamplingSettings(), VOCABULARY, torch.device("cpu")))
    used.commit(text, None, NO_NODES)
    fresh = reading([text])
    assert used.at_root() == fresh.at_root()
    np.testing.assert_array_equal(candidates(used, text[-1]).log_probs, candidates(fresh, text[-1]).log_probs)


@given(texts)
def test_what_a_controller_sees_is_the_best_offer_at_the_root(text: list[int]) -> None:
    length, rate = reading([text]).at_root()
    offers = lookup(text)
    assert rate == pytest.approx(max(offers.values(), default=0))
    assert length == max((match[1] for match in matches(text, text)), default=0)


class TestMatches:
    def test_the_longest_match_comes_first(self) -> None:
        # "1 2 3" was followed by 9; "2 3", later, by 8.
        text = [1, 2, 3, 9, 5, 2, 3, 8, 6, 1, 2, 3]
        assert list(lookup(text)) == [9, 8]
        assert list(lookup(text, longest=2)) == [8, 9]

    def test_of_equal_matches_the_latest_comes_first(self) -> None:
        assert list(lookup([1, 2, 7, 4, 1, 2, 8, 5, 1, 2])) == [8, 7]

    def test_matches_go_on_along_a_branch(self) -> None:
        text = [1, 2, 3, 9, 7, 1, 2]
        assert list(lookup(text)) == [3]
        assert list(lookup(text, [3])) == [9]
        assert list(lookup(text, [3, 9])) == [7]
        assert not lookup(text, [4])

    @pytest.mark.parametrize("text", [[5], [1, 2, 3, 4], [1, 2, 9, 2], [1, 1]])
    def test_without_a_match_nothing_is_proposed(self, text: list[int]) -> None:
        assert not lookup(text)
        assert reading([text]).at_root() == (0, 0.0)

    def test_text_that_a_match_overlaps_counts(self) -> None:
        assert list(lookup([6, 6, 6])) == [6]

    @pytest.mark.parametrize(("later", "best"), [(31, 9), (32, 8)])
    def test_only_the_latest_occurrences_are_looked_at(self, later: int, best: int) -> None:
        text = [5, 1, 2, 9, *[6, 1, 2, 8] * later, 5, 1, 2]
        assert next(iter(lookup(text))) == best

    def test_single_tokens_match_where_that_is_asked_for(self) -> None:
        assert list(lookup([4, 9, 3, 4], shortest=1)) == [9]
        assert not lookup([4, 9, 3, 4])


class TestRates:
    def test_a_longer_match_counts_for_more_before_anything_is_known(self) -> None:
        after = list(range(100, 120))
        rates = [max(lookup([*after, 9, *after[-length:]]).values()) for length in range(2, 17)]
        np.testing.assert_allclose(rates, [length / (length + 2) for length in range(2, 17)])
        assert reading([[*after, 9, *after]]).at_root()[0] == 16, "more than the longest is not compared"

    def test_the_more_often_it_was_right_the_likelier_it_is_thought_to_be(self) -> None:
        kept = [1, 2, 3, 10, 1, 2, 3, 11, 1, 2, 3, 12, 1, 2]
        broken = [1, 2, 3, 10, 1, 2, 4, 11, 1, 2, 3, 12, 1, 2]
        assert list(lookup(kept)) == [3]
        assert next(iter(lookup(broken))) == 3
        assert lookup(kept)[3] == (2 + 8 * 0.5) / (2 + 8)
        assert lookup(broken)[3] == (0 + 8 * 0.5) / (2 + 8)

    def test_the_strength_says_how_soon_counts_outweigh_the_prior(self) -> None:
        text = [1, 2, 3, 10, 1, 2, 3, 11, 1, 2]
        rates = [lookup(text, strength=strength)[3] for strength in (1, 8, 1000)]
        assert rates == pytest.approx([1.5 / 2, 5 / 9, 501 / 1001])


@pytest.mark.parametrize(("shortest", "longest"), [(0, 8), (-1, 8), (5, 4)])
def test_lengths_that_make_no_range_are_refused(shortest: int, longest: int) -> None:
    with pytest.raises(ParameterError, match=f"1 <= shortest <= longest; got {shortest} and {longest}"):
        LookupDraft(shortest, longest)


@pytest.mark.parametrize("strength", [0, -1, math.nan, math.inf])
def test_a_strength_that_counts_for_nothing_or_everything_is_refused(strength: float) -> None:
    with pytest.raises(ParameterError, match=f"strength over 0; got {strength}"):
        LookupDraft(strength=strength)

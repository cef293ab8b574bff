"""Batches hold every text once an epoch, with the teacher's labels within the student's vocabulary."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specgym.agents.distillation.data.corpus import (
    KINDS,
    LabelledText,
    collate,
    frequent_tokens,
    padded_shape,
    plan_batches,
    plan_padded,
    trimmed_index,
)
from tests.support.distilling import label_texts, make_conversation
from tests.support.tiny_models import VOCABULARY, tiny_llama


@given(st.lists(st.lists(st.integers(0, 9), min_size=1), min_size=1), st.integers(1, 10))
def test_frequent_tokens_are_the_most_frequent_and_their_coverage_is_exact(texts: list[list[int]], size: int) -> None:
    nothing = torch.empty(0)
    labelled = [LabelledText(torch.tensor(text), nothing, nothing, nothing, 0, 0.0, KINDS[0], 0) for text in texts]
    chosen, coverage = frequent_tokens(labelled, 10, size)
    counts = Counter(itertools.chain.from_iterable(texts))
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == size
    best = [count for _, count in counts.most_common(size)]
    assert sum(counts[token] for token in chosen.tolist()) == sum(best)
    assert coverage == pytest.approx(sum(best) / sum(counts.values()))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(64, 1024), st.integers(0, 9))
def test_every_text_is_in_one_batch_of_limited_size(lengths: list[int], batch_tokens: int, seed: int) -> None:
    plan = plan_batches(lengths, batch_tokens, seed)
    assert sorted(itertools.chain.from_iterable(plan)) == list(range(len(lengths)))
    for group in plan:
        # Conversations are sorted by length with a jitter of 24 tokens.
        assert len(group) == 1 or len(group) * (max(lengths[index] for index in group) - 24) <= batch_tokens
    assert plan_batches(lengths, batch_tokens, seed) == plan


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(64, 1024), st.integers(0, 9))
def test_every_text_is_in_one_padded_batch_of_few_shapes(lengths: list[int], batch_tokens: int, seed: int) -> None:
    plan = plan_padded(lengths, batch_tokens, seed)
    assert sorted(itertools.chain.from_iterable(plan)) == list(range(len(lengths)))
    shapes = Counter()
    for group in plan:
        shape, *others = {padded_shape(lengths[index], batch_tokens) for index in group}
        assert not others, "they fill the same shape"
        count, width = shape
        assert len(group) <= count
        assert max(lengths[index] for index in group) - 1 <= width
        assert count == 1 or count * width <= batch_tokens
        shapes[shape] += len(group) < count
    assert len(shapes) <= 5, "multiples of 64 up to 300"
    assert set(shapes.values()) <= {0, 1}, "of each shape, the last batch alone may be half empty"
    assert plan_padded(lengths, batch_tokens, seed) == plan


@pytest.mark.parametrize("plan", [plan_batches, plan_padded])
def test_seeds_give_other_batches_in_another_order(plan: Callable[[list[int], int, int], list[list[int]]]) -> None:
    lengths = [length % 140 + 5 for length in range(60)] * 2
    assert plan(lengths, 128, 0) != plan(lengths, 128, 1)
    longest = [max(lengths[index] for index in group) for group in plan(lengths, 128, 0)]
    assert longest != sorted(longest), "short ones do not come first"


@given(st.sets(st.integers(0, 19), min_size=1))
def test_a_trimmed_index_points_back_to_the_token(tokens: set[int]) -> None:
    token_ids = torch.tensor(sorted(tokens, key=lambda token: token % 7))
    trimmed = trimmed_index(token_ids, 20)
    for token, index in enumerate(trimmed.tolist()):
        assert token_ids[index] == token if token in tokens else index == -1


@pytest.mark.parametrize("layers", [(), (1,)])
def test_a_batch_holds_the_teachers_labels_within_the_trimmed_vocabulary(
    tmp_path: Path, layers: tuple[int, ...]
) -> None:
    conversations = [make_conversation(4, 0), make_conversation(7, 1)]
    texts = label_texts(tiny_llama(), conversations, tmp_path, layers)
    token_ids = torch.arange(1, VOCABULARY, 2)
    batch = collate(texts, trimmed_index(token_ids, VOCABULARY))
    assert batch.tokens.shape == (2, 6)
    assert batch.features.shape == (2, 6, 32 * (len(layers) + 1))
    for row, text in enumerate(texts):
        rows = len(text.tokens) - 1
        assert batch.tokens[row, :rows].equal(text.tokens[1:])
        assert batch.features[row, :rows].equal(text.features[:-1])
        assert (batch.teacher_probs[row, rows:] == 0).all(), "padding teaches nothing"
        for place, column in itertools.product(range(rows), range(VOCABULARY)):
            token = int(text.teacher_ids[place + 1, column])
            probability = batch.teacher_probs[row, place, column]
            if token % 2:
                assert token_ids[batch.teacher_ids[row, place, column]] == token
                assert probability == text.teacher_log_probs[place + 1, column].float().exp()
            else:
                assert probability == 0

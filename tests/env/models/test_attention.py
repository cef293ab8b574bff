"""Attention: its stacked form equals the plain one, and a tree is read as its branches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from specgym.env.models.attention import attend
from specgym.env.models.masks import additive_mask
from specgym.env.models.target import CachedModel
from tests.support.tiny_models import tiny_llama

CPU = torch.device("cpu")
GROUPS = pytest.mark.parametrize("group", [1, 2, 3])


def states(heads: int, rows: int, dim: int = 8, batch: int = 2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, heads, rows, dim, generator=generator, dtype=torch.float64)


def plain_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """Textbook attention, with every key/value head repeated for its group."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    return (query @ key.transpose(-1, -2) * scale + mask).softmax(-1) @ value


@GROUPS
@pytest.mark.parametrize("scale", [None, 0.3])
def test_rows_under_a_mask_get_plain_attention(group: int, scale: float | None) -> None:
    query, key, value = states(2 * group, 5), states(2, 9, seed=1), states(2, 9, seed=2)
    visible = np.random.default_rng(0).random((5, 6)) < 0.5
    visible[:, 0] = True
    mask = additive_mask(3, visible, torch.float64, CPU)
    expected = plain_attention(query, key, value, mask, scale or 1 / math.sqrt(8))
    torch.testing.assert_close(attend(query, key, value, mask, scale), expected)
    open_attention = attend(query, key, value, torch.zeros_like(mask), scale)
    assert not torch.allclose(open_attention, expected), "the test would be vacuous"


@GROUPS
def test_a_single_row_without_a_mask_sees_every_column(group: int) -> None:
    query, key, value = states(2 * group, 1), states(2, 9, seed=1), states(2, 9, seed=2)
    expected = plain_attention(query, key, value, torch.zeros(1), 1 / math.sqrt(8))
    torch.testing.assert_close(attend(query, key, value, None), expected)


@GROUPS
def test_several_rows_without_a_mask_see_each_other_causally(group: int) -> None:
    query, key, value = states(2 * group, 5), states(2, 5, seed=1), states(2, 5, seed=2)
    causal = torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1)
    expected = plain_attention(query, key, value, causal, 1 / math.sqrt(8))
    torch.testing.assert_close(attend(query, key, value, None), expected)


def test_values_may_be_narrower_than_keys() -> None:
    query, key, value = states(4, 3), states(2, 7, seed=1), states(2, 7, dim=5, seed=2)
    mask = additive_mask(4, np.tri(3, dtype=bool), torch.float64, CPU)
    expected = plain_attention(query, key, value, mask, 1 / math.sqrt(8))
    torch.testing.assert_close(attend(query, key, value, mask), expected)
    assert attend(query[:, :, :1], key, value, None).shape == (2, 4, 1, 5)


def test_rows_without_a_mask_behind_other_columns_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Without a mask, 3 rows need as many columns; got 7"):
        attend(states(4, 3), states(2, 7), states(2, 7), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_shows_the_prefix_and_what_is_visible_and_hides_the_rest(dtype: torch.dtype) -> None:
    visible = np.array([[True, False, False], [True, True, False]])
    mask = additive_mask(2, visible, dtype, CPU)
    assert mask.dtype == dtype
    assert mask.shape == (1, 1, 2, 5)
    assert (mask[0, 0] == 0).tolist() == [[True, True, True, False, False], [True, True, True, True, False]]
    assert set(mask[mask != 0].tolist()) == {torch.finfo(dtype).min}


@torch.inference_mode()
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_tree_read_in_one_forward_is_read_as_its_branches_alone(kv_heads: int) -> None:
    model = CachedModel(tiny_llama(num_key_value_heads=kv_heads))
    prefix, left, right = [5, 6, 7], [8, 9, 10], [8, 11, 12]
    alone = []
    for branch in (left, right):
        model.cache.reset()
        model.extend(prefix)
        alone.append(torch.cat([model.extend([token]) for token in branch]))
    model.cache.reset()
    model.extend(prefix)
    tokens, positions = np.array([8, 9, 11, 10, 12]), np.array([3, 4, 4, 5, 5])
    visible = np.array([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 1, 0, 1]], bool)
    tree = model.extend_tree(tokens, positions, visible)
    torch.testing.assert_close(tree[[0, 1, 3]], alone[0])
    torch.testing.assert_close(tree[[0, 2, 4]], alone[1])


@torch.inference_mode()
def test_tokens_read_at_once_in_two_pieces_or_one_by_one_give_the_same_logits() -> None:
    model, text = CachedModel(tiny_llama()), [5, 6, 7, 8, 9]
    whole = model.extend(text)
    for pieces in ([text[:2], text[2:]], [[token] for token in text]):
        model.cache.reset()
        torch.testing.assert_close([model.extend(piece) for piece in pieces][-1], whole)


@torch.inference_mode()
def test_a_model_keeps_its_attention_and_says_what_it_said() -> None:
    model = tiny_llama()
    before, text = model.config._attn_implementation, torch.tensor([[5, 6, 7, 8]])
    logits = model(text).logits
    cached = CachedModel(model)
    # transformers' norms are computed in float32, whatever the precision.
    torch.testing.assert_close(cached.extend([5, 6, 7, 8]), logits[0, -1:], rtol=1e-4, atol=1e-4)
    assert model.config._attn_implementation == before
    torch.testing.assert_close(model(text).logits, logits)

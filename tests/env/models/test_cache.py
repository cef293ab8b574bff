"""The cache: the rows that it keeps of a tree are those of the kept tokens read alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specgym.env.models.cache import KeyValueBuffer
from specgym.env.models.target import CachedModel
from specgym.env.tree.tree import TokenTree
from tests.support.tiny_models import make_prompt, tiny_llama

PROMPT = list(make_prompt(0, 6))
MODEL = CachedModel(tiny_llama())


def read(tokens: list[int]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The rows of every layer after reading `tokens` alone, and the logits after one more token."""
    MODEL.cache.reset()
    MODEL.extend(tokens)
    return rows(), MODEL.extend([3])


def rows() -> list[torch.Tensor]:
    """A copy of the keys and values of every layer."""
    length = MODEL.cache.length
    return [part[:, :, :length].clone() for layer in MODEL.cache.layers for part in (layer.keys, layer.values)]


def assert_kept(tree: TokenTree, path: list[int]) -> None:
    """Reads a tree behind the prompt, keeps a path and compares with reading prompt and path alone."""
    MODEL.cache.reset()
    MODEL.extend(PROMPT)
    MODEL.extend_tree(tree.token, len(PROMPT) + tree.depth, tree.ancestors)
    MODEL.cache.keep_path(len(PROMPT), np.array(path, np.int64))
    assert MODEL.cache.length == len(PROMPT) + len(path)
    kept, after = rows(), MODEL.extend([3])
    expected, expected_after = read([*PROMPT, *tree.token[path].tolist()])
    torch.testing.assert_close(kept, expected)
    torch.testing.assert_close(after, expected_after)


def example_tree() -> TokenTree:
    """Nodes 0-1-2 in a row, 0-3-5 further behind, and 4 under 1."""
    tree = TokenTree(4)
    tree.add(np.array([0]), np.array([7]), np.zeros(1))
    tree.add(np.array([1, 0, 1]), np.array([8, 9, 10]), np.zeros(3))
    tree.add(np.array([3]), np.array([11]), np.zeros(1))
    return tree


@torch.inference_mode()
@pytest.mark.parametrize(
    "path", [[], [0], [0, 1, 2], [0, 3, 5], [0, 1, 4]], ids=["nothing", "root", "in place", "moved", "both"]
)
def test_a_kept_path_leaves_the_rows_of_its_tokens_alone(path: list[int]) -> None:
    assert_kept(example_tree(), path)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 30)), max_size=10), st.floats(0, 1))
def test_any_path_of_any_tree_is_kept_rightly(nodes: list[tuple[float, int]], where: float) -> None:
    tree = TokenTree(4)
    for fraction, token in nodes:
        tree.add(np.array([int(fraction * len(tree))]), np.array([token]), np.zeros(1))
    with torch.inference_mode():
        assert_kept(tree, np.flatnonzero(tree.ancestors[int(where * (len(tree) - 1))]).tolist())


@torch.inference_mode()
def test_a_reset_cache_remembers_nothing() -> None:
    first = read(PROMPT)[1]
    MODEL.extend([9, 9, 9])
    MODEL.cache.reset()
    assert MODEL.cache.length == 0
    torch.testing.assert_close(read(PROMPT)[1], first)


def states(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 1, 2, rows, 4, generator=generator)
    return keys, values


class TestBuffer:
    def test_growing_past_the_capacity_keeps_what_is_there(self) -> None:
        buffer, pieces = KeyValueBuffer(capacity=3), [states(rows, rows) for rows in (2, 1, 3, 11, 1)]
        for keys, values in pieces:
            held_keys, held_values = buffer.update(keys, values)
        assert buffer.capacity >= 18
        torch.testing.assert_close(held_keys, torch.cat([keys for keys, _ in pieces], dim=2))
        torch.testing.assert_close(held_values, torch.cat([values for _, values in pieces], dim=2))
        assert buffer.get_seq_length() == 18
        assert buffer.get_mask_sizes(4) == (22, 0)

    def test_room_for_rows_to_come_is_made_in_steps_and_keeps_what_is_there(self) -> None:
        buffer = KeyValueBuffer(capacity=3)
        assert not buffer.make_room(5), "there is no buffer yet"
        keys, values = states(3)
        buffer.update(keys, values)
        capacities = [buffer.capacity]
        while buffer.capacity < 4000:
            assert buffer.make_room(buffer.capacity - buffer.length + 1)
            assert not buffer.make_room(buffer.capacity - buffer.length)
            capacities.append(buffer.capacity)
        assert all(256 <= larger - less <= max(256, less / 4) for less, larger in itertools.pairwise(capacities))
        assert buffer.length == 3
        torch.testing.assert_close((buffer.keys[:, :, :3], buffer.values[:, :, :3]), (keys, values))

    def test_a_first_piece_over_the_capacity_fits(self) -> None:
        keys, values = states(9)
        torch.testing.assert_close(KeyValueBuffer(capacity=2).update(keys, values), (keys, values))

    def test_attention_gets_views_and_nothing_is_copied(self) -> None:
        buffer = KeyValueBuffer(capacity=16)
        held, _ = buffer.update(*states(3))
        again, _ = buffer.update(*states(2, 1))
        assert held.data_ptr() == again.data_ptr() == buffer.keys.data_ptr()
        assert again.shape[2] == 5

    def test_keys_and_values_may_differ_in_width(self) -> None:
        keys, values = states(3)
        torch.testing.assert_close(KeyValueBuffer(2).update(keys, values[..., :2]), (keys, values[..., :2]))

    def test_a_reset_forgets_the_rows_and_keeps_the_buffers(self) -> None:
        buffer = KeyValueBuffer(capacity=2)
        buffer.update(*states(7))
        where = buffer.keys.data_ptr()
        buffer.reset()
        keys, values = states(4, 1)
        torch.testing.assert_close(buffer.update(keys, values), (keys, values))
        assert buffer.keys.data_ptr() == where

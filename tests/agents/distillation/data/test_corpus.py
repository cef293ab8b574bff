"""Texts are read as they were written, in order; damaged or lost shards are named; no prompt is on both sides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specgym.agents.distillation.data.corpus import (
    KINDS,
    LabelledText,
    load_texts,
    shard_path,
    split_texts,
    text_shard,
    write_shard,
)
from specgym.env.common.errors import ModelFileError
from tests.support.distilling import label_shard, label_texts, make_conversation, write_labelled
from tests.support.tiny_models import tiny_llama


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of a conversation each, of lengths 9, 5 and 7."""
    model = tiny_llama()
    for number, length in enumerate((9, 5, 7)):
        write_labelled(tmp_path, model, [make_conversation(length, number)], number)
    return tmp_path


def truncated(data: bytes) -> bytes:
    return data[:-5]


def emptied(data: bytes) -> bytes:
    return b""


def scribbled(data: bytes) -> bytes:
    return b"{" * len(data)


class TestShards:
    def test_texts_are_the_conversations_in_order(self, tmp_path: Path) -> None:
        conversations = [make_conversation(length, seed, 2) for seed, length in enumerate((5, 9, 3, 4, 8, 6))]
        model = tiny_llama()
        texts = label_texts(model, conversations, tmp_path)
        for conversation, text in zip(conversations, texts, strict=True):
            assert text.tokens.tolist() == conversation.tokens.tolist()
            assert (text.answer_start, text.temperature, text.kind, text.prompt_hash) == (
                conversation.answer_start,
                conversation.temperature,
                conversation.kind,
                conversation.prompt_hash,
            )
            with torch.inference_mode():
                own = model.model(text.tokens[None]).last_hidden_state[0]
            assert text.features.equal(own.bfloat16())
            assert len(text.teacher_ids) == len(text.teacher_log_probs) == len(text.tokens)

    def test_shards_follow_each_other(self, shards: Path) -> None:
        assert [len(text.tokens) for text in load_texts(shards)] == [9, 5, 7]

    def test_states_of_other_layers_are_distinguished(self, shards: Path) -> None:
        path = shard_path(shards, "text", 1)
        states = label_shard(tiny_llama(), text_shard([make_conversation(9, 0)]), (1,))
        write_shard(shard_path(shards, "states-1", 0), states)
        assert [text.features.shape[1] for text in load_texts(shards)] == [32, 32, 32]
        assert [text.features.shape[1] for text in load_texts(shards, "states-1")] == [64]
        assert path.exists()

    @pytest.mark.parametrize("what", ["text", "states"])
    @pytest.mark.parametrize("damage", [truncated, emptied, scribbled])
    def test_a_corrupt_shard_is_named(self, shards: Path, what: str, damage: Callable[[bytes], bytes]) -> None:
        path = shard_path(shards, what, 1)
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(ModelFileError, match=f"{path} is corrupt .* Delete it and run the command again"):
            list(load_texts(shards))

    def test_a_lost_shard_is_named(self, shards: Path) -> None:
        shard_path(shards, "text", 1).unlink()
        with pytest.raises(ModelFileError, match="text-0001"):
            list(load_texts(shards))

    def test_states_of_a_lost_shard_are_not_taken_from_another(self, shards: Path) -> None:
        shard_path(shards, "states", 1).unlink()
        assert [len(text.tokens) for text in load_texts(shards)] == [9, 7]


class TestSplit:
    @given(st.lists(st.integers(0, 2**32 - 1).map(lambda value: value % 50), max_size=60), st.integers(2, 20))
    def test_a_prompt_is_on_one_side(self, hashes: list[int], held_out: int) -> None:
        nothing = torch.empty(0)
        texts = [
            LabelledText(torch.tensor([index]), nothing, nothing, nothing, 0, 0.0, KINDS[0], prompt)
            for index, prompt in enumerate(hashes)
        ]
        seen, kept = split_texts(texts, held_out)
        order = [int(text.tokens) for side in (seen, kept) for text in side]
        assert sorted(order) == list(range(len(texts))), "nothing is lost and nothing is twice"
        assert not {text.prompt_hash for text in seen} & {text.prompt_hash for text in kept}

    def test_one_prompt_in_so_many_is_held_out(self) -> None:
        nothing = torch.empty(0)
        random = torch.randint(0, 2**32, (4000,), generator=torch.Generator().manual_seed(0)).tolist()
        texts = [LabelledText(nothing, nothing, nothing, nothing, 0, 0.0, KINDS[0], prompt) for prompt in random]
        _, kept = split_texts(texts, 10)
        assert len(kept) / len(texts) == pytest.approx(0.1, abs=0.02)

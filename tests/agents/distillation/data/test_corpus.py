"""What was written is read again as it was, in order; what is damaged or lost is named; no prompt is on both sides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specgym.agents.distillation.data.corpus import (
    KINDS,
    Lesson,
    TextShard,
    load_lessons,
    shard_path,
    split_lessons,
    write_shard,
)
from specgym.agents.distillation.data.teacher import teacher_states
from specgym.env.common.errors import ModelFileError
from tests.support.distilling import make_conversation, make_lessons
from tests.support.tiny_models import tiny_llama


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of a conversation each, of lengths 9, 5 and 7."""
    model = tiny_llama()
    for number, length in enumerate((9, 5, 7)):
        shard = TextShard.of([make_conversation(length, number)])
        write_shard(shard_path(tmp_path, "text", number), shard.tensors())
        write_shard(shard_path(tmp_path, "states", number), teacher_states(model, shard))
    return tmp_path


def truncated(data: bytes) -> bytes:
    return data[:-5]


def emptied(data: bytes) -> bytes:
    return b""


def scribbled(data: bytes) -> bytes:
    return b"{" * len(data)


class TestShards:
    def test_lessons_are_the_conversations_in_order(self, tmp_path: Path) -> None:
        conversations = [make_conversation(length, seed, 2) for seed, length in enumerate((5, 9, 3, 4, 8, 6))]
        model = tiny_llama()
        lessons = make_lessons(model, conversations, tmp_path)
        for conversation, lesson in zip(conversations, lessons, strict=True):
            assert lesson.tokens.tolist() == conversation.tokens.tolist()
            assert (lesson.answer_start, lesson.temperature, lesson.kind, lesson.prompt_hash) == (
                conversation.answer_start,
                conversation.temperature,
                conversation.kind,
                conversation.prompt_hash,
            )
            with torch.inference_mode():
                own = model.model(lesson.tokens[None]).last_hidden_state[0]
            assert lesson.features.equal(own.bfloat16())
            assert len(lesson.teacher_ids) == len(lesson.teacher_log_probs) == len(lesson.tokens)

    def test_shards_follow_each_other(self, shards: Path) -> None:
        assert [len(lesson.tokens) for lesson in load_lessons(shards)] == [9, 5, 7]

    def test_states_of_other_layers_are_told_apart(self, shards: Path) -> None:
        path = shard_path(shards, "text", 1)
        states = teacher_states(tiny_llama(), TextShard.of([make_conversation(9, 0)]), (1,))
        write_shard(shard_path(shards, "states-1", 0), states)
        assert [lesson.features.shape[1] for lesson in load_lessons(shards)] == [32, 32, 32]
        assert [lesson.features.shape[1] for lesson in load_lessons(shards, "states-1")] == [64]
        assert path.exists()

    @pytest.mark.parametrize("what", ["text", "states"])
    @pytest.mark.parametrize("damage", [truncated, emptied, scribbled])
    def test_a_corrupt_shard_is_named(self, shards: Path, what: str, damage: Callable[[bytes], bytes]) -> None:
        path = shard_path(shards, what, 1)
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(ModelFileError, match=f"{path} is corrupt .* Delete it and run the command again"):
            list(load_lessons(shards))

    def test_a_lost_shard_is_named(self, shards: Path) -> None:
        shard_path(shards, "text", 1).unlink()
        with pytest.raises(ModelFileError, match="text-0001"):
            list(load_lessons(shards))

    def test_what_the_teacher_said_of_a_lost_shard_is_not_made_up_for_by_another(self, shards: Path) -> None:
        shard_path(shards, "states", 1).unlink()
        assert [len(lesson.tokens) for lesson in load_lessons(shards)] == [9, 7]


class TestSplit:
    @given(st.lists(st.integers(0, 2**32 - 1).map(lambda value: value % 50), max_size=60), st.integers(2, 20))
    def test_a_prompt_is_on_one_side(self, hashes: list[int], held_out: int) -> None:
        nothing = torch.empty(0)
        lessons = [
            Lesson(torch.tensor([index]), nothing, nothing, nothing, 0, 0.0, KINDS[0], prompt)
            for index, prompt in enumerate(hashes)
        ]
        seen, kept = split_lessons(lessons, held_out)
        order = [int(lesson.tokens) for side in (seen, kept) for lesson in side]
        assert sorted(order) == list(range(len(lessons))), "nothing is lost and nothing is twice"
        assert not {lesson.prompt_hash for lesson in seen} & {lesson.prompt_hash for lesson in kept}

    def test_one_prompt_in_so_many_is_held_out(self) -> None:
        nothing = torch.empty(0)
        random = torch.randint(0, 2**32, (4000,), generator=torch.Generator().manual_seed(0)).tolist()
        lessons = [Lesson(nothing, nothing, nothing, nothing, 0, 0.0, KINDS[0], prompt) for prompt in random]
        _, kept = split_lessons(lessons, 10)
        assert len(kept) / len(lessons) == pytest.approx(0.1, abs=0.02)

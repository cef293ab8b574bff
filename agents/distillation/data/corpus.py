"""Conversations on disk and what the teacher says of them: shards of a run folder.

A corpus is a folder of numbered shards, each a safetensors file that appears at once or not at all. A text shard holds
conversations one behind the other; the state shard of the same number holds, for every token of it, the target's last
hidden state and its most probable next tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from specgym.agents.distillation.data.generation import Conversation
from specgym.agents.distillation.data.prompt_templates import KINDS
from specgym.env.common.errors import ModelFileError
from specgym.env.common.files import atomic_path

_STATES = ("features", "teacher_ids", "teacher_log_probs")


@dataclass(frozen=True)
class TextShard:
    """Conversations one behind the other."""

    tokens: torch.Tensor
    """token ids, `int32[tokens]`"""
    starts: torch.Tensor
    """where each conversation begins, and the end of the last one, `int64[conversations + 1]`"""
    answer_starts: torch.Tensor
    """index of each answer's first token within its conversation, `int64[conversations]`"""
    temperatures: torch.Tensor
    """temperature of each answer, `float32[conversations]`"""
    kinds: torch.Tensor
    """index of each conversation's kind in `KINDS`, `int64[conversations]`"""
    prompt_hashes: torch.Tensor
    """see `Conversation.prompt_hash`, `int64[conversations]`"""

    @classmethod
    def of(cls, conversations: Sequence[Conversation]) -> TextShard:
        """Packs conversations."""
        lengths = [len(conversation.tokens) for conversation in conversations]
        return cls(
            torch.from_numpy(np.concatenate([conversation.tokens for conversation in conversations])),
            torch.tensor(np.concatenate([[0], np.cumsum(lengths)])),
            torch.tensor([conversation.answer_start for conversation in conversations]),
            torch.tensor([conversation.temperature for conversation in conversations], dtype=torch.float32),
            torch.tensor([KINDS.index(conversation.kind) for conversation in conversations]),
            torch.tensor([conversation.prompt_hash for conversation in conversations]),
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """The fields by name, as `write_shard` takes them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Lesson:
    """A conversation as the draft learns from it; one that the teacher was not asked about has nothing of it."""

    tokens: torch.Tensor
    """token ids, `int64[length]`"""
    features: torch.Tensor
    """the target's hidden states, `bfloat16[length, width]`"""
    teacher_ids: torch.Tensor
    """the target's most probable next tokens at each position, best first, `int32[length, top]`"""
    teacher_log_probs: torch.Tensor
    """their log-probabilities, `float16[length, top]`"""
    answer_start: int
    """index of the answer's first token"""
    temperature: float
    """temperature of the answer"""
    kind: str
    """kind of task"""
    prompt_hash: int
    """see `Conversation.prompt_hash`"""

    def kept(self) -> Lesson:
        """As it would be read from a state shard."""
        return dataclasses.replace(
            self,
            features=self.features.to("cpu", torch.bfloat16),
            teacher_ids=self.teacher_ids.to("cpu", torch.int32),
            teacher_log_probs=self.teacher_log_probs.to("cpu", torch.float16),
        )


def shard_path(folder: Path, what: str, number: int) -> Path:
    """Where shard `number` of ``"text"`` or ``"states"`` stands."""
    return folder / f"{what}-{number:04d}.safetensors"


def write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes a shard atomically. Raises `FileWriteError`."""
    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def read_shard(path: Path) -> dict[str, torch.Tensor]:
    """Reads a shard.

    Raises:
        ModelFileError: the file is corrupt; deleting it lets the next run make it again.
    """
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} is corrupt ({error}). Delete it and run the command again.") from error
    return tensors


def recorded_layers(folder: Path) -> tuple[int, ...]:
    """The layers whose states a run folder holds besides the last one: the fewest, if states were recorded twice."""
    names = (path.name.split(".")[0].split("-")[1:-1] for path in folder.glob("states-*.safetensors"))
    return min((tuple(int(layer) for layer in name) for name in names), key=len, default=())


def load_lessons(folder: Path, states: str = "states") -> Iterator[Lesson]:
    """All conversations of a run folder whose state shards of that name are there, in order.

    Raises:
        ModelFileError: a shard is corrupt or lost.
    """
    for path in sorted(folder.glob(f"{states}-[0-9][0-9][0-9][0-9].safetensors")):
        number = int(path.stem[-4:])  # a shard may be missing
        yield from read_lessons(shard_path(folder, "text", number), path)


def read_texts(folder: Path) -> Iterator[Lesson]:
    """All conversations of a run folder without anything of the teacher, in order. Raises as `load_lessons` does."""
    for path in sorted(folder.glob("text-[0-9][0-9][0-9][0-9].safetensors")):
        text, nothing = TextShard(**read_shard(path)), torch.empty(1, 0)
        yield from _lessons(text, dict.fromkeys(_STATES, nothing.expand(len(text.tokens), 0)))


def read_lessons(text_path: Path, states_path: Path) -> Iterator[Lesson]:
    """The conversations of a text shard with what the teacher said of them. Raises as `load_lessons` does."""
    yield from _lessons(TextShard(**read_shard(text_path)), read_shard(states_path))


def _lessons(text: TextShard, states: dict[str, torch.Tensor]) -> Iterator[Lesson]:
    for index, (start, end) in enumerate(pairwise(text.starts.tolist())):
        yield Lesson(
            text.tokens[start:end].long(),
            states["features"][start:end],
            states["teacher_ids"][start:end],
            states["teacher_log_probs"][start:end],
            int(text.answer_starts[index]),
            float(text.temperatures[index]),
            KINDS[int(text.kinds[index])],
            int(text.prompt_hashes[index]),
        )


def split_lessons(lessons: Iterable[Lesson], held_out: int) -> tuple[list[Lesson], list[Lesson]]:
    """Lessons to learn and lessons held out: of the prompts, one in `held_out`; all of a prompt on the same side."""
    sides: tuple[list[Lesson], list[Lesson]] = ([], [])
    for lesson in lessons:
        sides[lesson.prompt_hash % held_out == 0].append(lesson)
    return sides

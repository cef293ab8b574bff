"""Training texts: numbered shards in a run folder, batches of labelled texts, and plans of the batches.

Each shard is a safetensors file that appears at once or not at all. A text shard holds conversations back to back.
The state shard of the same number holds the teacher's labels: for every token, the target's hidden states and its most
probable next tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from specgym.agents.distillation.data.generation import Conversation
from specgym.agents.distillation.data.prompt_templates import KINDS
from specgym.env.common.checkpoint import load_tensors, save_tensors
from specgym.env.common.errors import ModelFileError

_WIDTH = 64  # widths of `padded_shape` are multiples of it
LABELS = ("features", "teacher_ids", "teacher_log_probs")
"""tensors of a state shard"""


@dataclass(frozen=True)
class LabelledText:
    """A conversation and the teacher's labels, which are empty until the teacher has read the text."""

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


Teach: TypeAlias = Callable[[Sequence[LabelledText]], Sequence[LabelledText]]
"""labels texts that have no labels"""


def text_shard(conversations: Sequence[Conversation]) -> dict[str, torch.Tensor]:
    """Packs conversations back to back.

    Returns:
        ``tokens`` `int32[tokens]`; ``starts``, where each conversation begins and the last one ends,
        `int64[conversations + 1]`; and by conversation ``answer_starts``, ``temperatures``, ``kinds`` (index in
        `KINDS`) and ``prompt_hashes``.
    """
    lengths = [len(conversation.tokens) for conversation in conversations]
    return {
        "tokens": torch.from_numpy(np.concatenate([conversation.tokens for conversation in conversations])),
        "starts": torch.tensor(np.concatenate([[0], np.cumsum(lengths)])),
        "answer_starts": torch.tensor([conversation.answer_start for conversation in conversations]),
        "temperatures": torch.tensor([conversation.temperature for conversation in conversations], dtype=torch.float32),
        "kinds": torch.tensor([KINDS.index(conversation.kind) for conversation in conversations]),
        "prompt_hashes": torch.tensor([conversation.prompt_hash for conversation in conversations]),
    }


def shard_path(folder: Path, name: str, number: int) -> Path:
    """Returns the path of shard `number` of ``"text"`` or ``"states"``."""
    return folder / f"{name}-{number:04d}.safetensors"


def write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes a shard atomically. Raises `FileWriteError`."""
    save_tensors(path, {name: tensor.contiguous() for name, tensor in tensors.items()}, {})


def read_shard(path: Path) -> dict[str, torch.Tensor]:
    """Reads a shard.

    Raises:
        ModelFileError: the file is corrupt. If it is deleted, the next run makes it again.
    """
    return load_tensors(path)[0]


def is_intact(path: Path) -> bool:
    """Whether a shard is there and undamaged."""
    try:
        return path.exists() and bool(read_shard(path))
    except ModelFileError:
        return False


def recorded_layers(folder: Path) -> tuple[int, ...]:
    """Returns the layers whose states a run folder holds besides the last one: the fewest, if there are several."""
    names = (path.stem.split("-")[1:-1] for path in folder.glob("states-*.safetensors"))
    return min((tuple(map(int, name)) for name in names), key=len, default=())


def load_texts(folder: Path, states: str | None = "states") -> Iterator[LabelledText]:
    """Yields the texts of a run folder in order.

    Args:
        folder: the run folder.
        states: name of state shards. Only texts that have such a shard are read. None reads all texts without labels.

    Raises:
        ModelFileError: a shard is corrupt or lost.
    """
    for path in sorted(folder.glob(f"{states or 'text'}-[0-9][0-9][0-9][0-9].safetensors")):
        number = int(path.stem[-4:])  # a shard may be missing
        yield from read_texts(shard_path(folder, "text", number), path if states else None)


def read_texts(text_path: Path, states_path: Path | None = None) -> Iterator[LabelledText]:
    """Yields the texts of a text shard, with labels if there is a state shard. Raises as `load_texts` does."""
    shard = read_shard(text_path)
    tokens = shard["tokens"].long()
    states = read_shard(states_path) if states_path else dict.fromkeys(LABELS, torch.empty(len(tokens), 0))
    columns = (shard[name].tolist() for name in ("answer_starts", "temperatures", "kinds", "prompt_hashes"))
    for span, answer_start, heat, kind, prompt in zip(pairwise(shard["starts"].tolist()), *columns, strict=True):
        features, ids, log_probs = (states[name][slice(*span)] for name in LABELS)
        text = tokens[slice(*span)]
        yield LabelledText(text, features, ids, log_probs, answer_start, heat, KINDS[kind], prompt)


def split_texts(texts: Iterable[LabelledText], held_out: int) -> tuple[list[LabelledText], list[LabelledText]]:
    """Splits texts into training and held-out ones: one prompt in `held_out`, with all its texts, is held out."""
    sides: tuple[list[LabelledText], list[LabelledText]] = ([], [])
    for text in texts:
        sides[text.prompt_hash % held_out == 0].append(text)
    return sides


@dataclass(frozen=True)
class Batch:
    """Texts of similar length, padded on the right. Row r is for the text's token r + 1."""

    tokens: torch.Tensor
    """token ids of the rows, `int64[batch, rows]`"""
    features: torch.Tensor
    """the target's states before each row's token, `bfloat16[batch, rows, width]`"""
    teacher_ids: torch.Tensor
    """the target's most probable tokens after each row, in the student's vocabulary, `int64[batch, rows, top]`"""
    teacher_probs: torch.Tensor
    """their probabilities; 0 outside the student's vocabulary and in padding, `float32[batch, rows, top]`"""


def frequent_tokens(texts: Sequence[LabelledText], vocabulary: int, size: int) -> tuple[torch.Tensor, float]:
    """Returns the `size` most frequent tokens by id, `int64[size]`, and the share of all tokens that they cover."""
    counts = torch.bincount(torch.cat([text.tokens for text in texts]), minlength=vocabulary)
    chosen = counts.argsort(descending=True, stable=True)[:size].sort().values
    return chosen, float(counts[chosen].sum() / counts.sum())


def trimmed_index(token_ids: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Returns each target token's index in a trimmed vocabulary, or -1 outside it, `int64[vocabulary]`."""
    trimmed = torch.full((vocabulary,), -1, dtype=torch.int64)
    trimmed[token_ids] = torch.arange(len(token_ids))
    return trimmed


def group_by_length(lengths: Sequence[int], batch_tokens: int, keys: Sequence[float]) -> list[list[int]]:
    """Returns indices of texts in groups of at most `batch_tokens` tokens, padding included, in order of their keys."""
    groups: list[list[int]] = [[]]
    for index in sorted(range(len(lengths)), key=keys.__getitem__):
        if groups[-1] and (len(groups[-1]) + 1) * lengths[index] > batch_tokens:
            groups.append([])
        groups[-1].append(index)
    return groups


def plan_batches(lengths: Sequence[int], batch_tokens: int, seed: int) -> list[list[int]]:
    """Returns batches of texts of similar length, in random order. Every text is in one batch."""
    generator = torch.Generator().manual_seed(seed)
    jitter = (24 * torch.rand(len(lengths), generator=generator)).tolist()
    keys = [length + noise for length, noise in zip(lengths, jitter, strict=True)]
    return _shuffled(group_by_length(lengths, batch_tokens, keys), generator)


def padded_shape(length: int, batch_tokens: int) -> tuple[int, int]:
    """Returns texts and rows of a batch whose longest text has `length` tokens: one of few shapes."""
    width = math.ceil(max(length - 1, 1) / _WIDTH) * _WIDTH
    return max(1, batch_tokens // width), width


def plan_padded(lengths: Sequence[int], batch_tokens: int, seed: int) -> list[list[int]]:
    """Plans batches that are padded to their `padded_shape`. The last batch of a shape may be half empty."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[tuple[int, int], list[int]] = {}
    for index in torch.randperm(len(lengths), generator=generator).tolist():
        shapes.setdefault(padded_shape(lengths[index], batch_tokens), []).append(index)
    groups = [group[at : at + count] for (count, _), group in shapes.items() for at in range(0, len(group), count)]
    return _shuffled(groups, generator)


def _shuffled(groups: list[list[int]], generator: torch.Generator) -> list[list[int]]:
    return [groups[group] for group in torch.randperm(len(groups), generator=generator).tolist()]


def known_tokens(ids: torch.Tensor, probs: torch.Tensor, trimmed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the target's tokens in the student's vocabulary and their probabilities: 0 for unknown tokens.

    Args:
        ids: the target's tokens, `int64[...]`.
        probs: their probabilities, `float32[...]`.
        trimmed: see `trimmed_index`, on the device of `ids`.
    """
    ids = trimmed[ids]
    return ids.clamp(min=0), probs * (ids >= 0)


def collate(texts: Sequence[LabelledText], trimmed: torch.Tensor) -> Batch:
    """Pads texts to a batch.

    Args:
        texts: texts with labels.
        trimmed: see `trimmed_index`, `int64[vocabulary]`.
    """
    ids = pad_sequence([text.teacher_ids[1:].long() for text in texts], batch_first=True)
    log_probs = [text.teacher_log_probs[1:].float() for text in texts]
    probs = pad_sequence(log_probs, batch_first=True, padding_value=-math.inf).exp()
    return Batch(
        pad_sequence([text.tokens[1:] for text in texts], batch_first=True),
        pad_sequence([text.features[:-1] for text in texts], batch_first=True),
        *known_tokens(ids, probs, trimmed.to(ids.device)),
    )

"""Lessons put together to batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from specgym.agents.distillation.data.corpus import Lesson

_WIDTH = 64  # widths of `padded_shape` are multiples of it


@dataclass(frozen=True)
class Batch:
    """Conversations of like length, padded on the right. Row r is for the text's token r + 1."""

    tokens: torch.Tensor
    """token ids of the rows, `int64[batch, rows]`"""
    features: torch.Tensor
    """the target's states before each row's token, `bfloat16[batch, rows, width]`"""
    teacher_ids: torch.Tensor
    """the target's most probable tokens after each row, in the student's vocabulary, `int64[batch, rows, top]`"""
    teacher_probs: torch.Tensor
    """their probabilities; 0 outside the student's vocabulary and in padding, `float32[batch, rows, top]`"""


def frequent_tokens(lessons: Sequence[Lesson], vocabulary: int, size: int) -> tuple[torch.Tensor, float]:
    """The `size` most frequent tokens in id order, `int64[size]`, and the share of the text that they cover."""
    counts = torch.bincount(torch.cat([lesson.tokens for lesson in lessons]), minlength=vocabulary)
    chosen = counts.argsort(descending=True, stable=True)[:size].sort().values
    return chosen, float(counts[chosen].sum() / counts.sum())


def trimmed_index(token_ids: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Index in a trimmed vocabulary of each of the target's tokens, -1 outside it, `int64[vocabulary]`."""
    trimmed = torch.full((vocabulary,), -1, dtype=torch.int64)
    trimmed[token_ids] = torch.arange(len(token_ids))
    return trimmed


def plan_batches(lengths: Sequence[int], batch_tokens: int, seed: int) -> list[list[int]]:
    """Indices of conversations of like length, in random order: every conversation in one batch."""
    generator = torch.Generator().manual_seed(seed)
    jitter = (24 * torch.rand(len(lengths), generator=generator)).tolist()
    groups: list[list[int]] = [[]]
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index] + jitter[index]):
        if groups[-1] and (len(groups[-1]) + 1) * lengths[index] > batch_tokens:
            groups.append([])
        groups[-1].append(index)
    return [groups[group] for group in torch.randperm(len(groups), generator=generator).tolist()]


def padded_shape(length: int, batch_tokens: int) -> tuple[int, int]:
    """Conversations and rows of a batch whose longest conversation has `length` tokens: one of few shapes."""
    width = math.ceil(max(length - 1, 1) / _WIDTH) * _WIDTH
    return max(1, batch_tokens // width), width


def plan_padded(lengths: Sequence[int], batch_tokens: int, seed: int) -> list[list[int]]:
    """As `plan_batches`, for batches that are padded to their `padded_shape`: the last of a width may be half empty."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[tuple[int, int], list[int]] = {}
    for index in torch.randperm(len(lengths), generator=generator).tolist():
        shapes.setdefault(padded_shape(lengths[index], batch_tokens), []).append(index)
    groups = [own[at : at + count] for (count, _), own in shapes.items() for at in range(0, len(own), count)]
    return [groups[group] for group in torch.randperm(len(groups), generator=generator).tolist()]


def known_tokens(ids: torch.Tensor, probs: torch.Tensor, trimmed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The target's tokens in the student's vocabulary, and their probabilities: 0 for those outside it.

    Args:
        ids: the target's tokens, `int64[...]`.
        probs: their probabilities, `float32[...]`.
        trimmed: see `trimmed_index`, on the device of `ids`.
    """
    ids = trimmed[ids]
    return ids.clamp(min=0), probs * (ids >= 0)


def collate(lessons: Sequence[Lesson], trimmed: torch.Tensor) -> Batch:
    """Pads lessons to a batch.

    Args:
        lessons: conversations.
        trimmed: index in the student's vocabulary of each of the target's tokens, -1 outside it, `int64[vocabulary]`.
    """
    ids = pad_sequence([lesson.teacher_ids[1:].long() for lesson in lessons], batch_first=True)
    probs = pad_sequence(
        [lesson.teacher_log_probs[1:].float() for lesson in lessons], batch_first=True, padding_value=-math.inf
    ).exp()
    return Batch(
        pad_sequence([lesson.tokens[1:] for lesson in lessons], batch_first=True),
        pad_sequence([lesson.features[:-1] for lesson in lessons], batch_first=True),
        *known_tokens(ids, probs, trimmed.to(ids.device)),
    )

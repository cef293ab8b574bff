"""What the teacher says at every position: computed once and kept, or asked for batch by batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from specgym.agents.distillation.data.corpus import Lesson, TextShard
from specgym.env.models.states import HiddenStates

TOP = 32
"""next tokens remembered per position: they hold nearly all of the probability"""

_CPU_BATCH_TOKENS, _GPU_BATCH_TOKENS = 4096, 32_768  # tokens that are read together, padding included
_CPU_HEAD_ROWS, _GPU_HEAD_ROWS = 512, 8192  # rows of logits at a time


class Teacher:
    """Says what a target thinks of texts, in the target's precision and on its device.

    Args:
        model: the target.
        layers: layers of the target whose outputs are wanted besides its last hidden state.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[int] = ()) -> None:
        self.model, self.layers = model, layers
        on_cpu = model.device.type == "cpu"
        self.batch_tokens = _CPU_BATCH_TOKENS if on_cpu else _GPU_BATCH_TOKENS
        self._head_rows = _CPU_HEAD_ROWS if on_cpu else _GPU_HEAD_ROWS

    @torch.no_grad()
    def ask(self, texts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reads texts together.

        Args:
            texts: token ids of each.

        Returns:
            Of all texts one behind the other: features `[tokens, width]` (see `HiddenStates`), the most probable next
            tokens `int64[tokens, TOP]` and their log-probabilities `float32[tokens, TOP]`.
        """
        states = HiddenStates(self.model, self.layers)
        # Padding stands on the right, where causal attention never looks.
        batch = pad_sequence([text.long() for text in texts], batch_first=True).to(self.model.device)
        self.model.get_decoder()(batch, use_cache=False)
        assert states.last is not None, "a forward records"
        features = torch.cat([row[: len(text)] for row, text in zip(states.last, texts, strict=True)])
        states.close()
        config, head = self.model.config, self.model.get_output_embeddings()
        parts = []
        for hidden in torch.split(features[:, -config.hidden_size :], self._head_rows):
            logits = head(hidden).float()
            best, ids = logits.topk(min(TOP, config.vocab_size))
            parts.append((ids, best - logits.logsumexp(-1, keepdim=True)))
        ids, log_probs = (torch.cat(part) for part in zip(*parts, strict=True))
        return features, ids, log_probs

    def teach(self, lessons: Sequence[Lesson]) -> list[Lesson]:
        """The lessons with what the teacher says of them."""
        features, *guesses = self.ask([lesson.tokens for lesson in lessons])
        answer = (features.to(torch.bfloat16), *guesses)
        lengths = [len(lesson.tokens) for lesson in lessons]
        spoken = zip(*(torch.split(part, lengths) for part in answer), strict=True)
        return [
            dataclasses.replace(lesson, features=features, teacher_ids=ids, teacher_log_probs=log_probs)
            for lesson, (features, ids, log_probs) in zip(lessons, spoken, strict=True)
        ]


def teacher_states(
    model: PreTrainedModel,
    shard: TextShard,
    layers: Sequence[int] = (),
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[str, torch.Tensor]:
    """Features and most probable next tokens at every position of a shard.

    Args:
        model: the target.
        shard: the text.
        layers: layers of the target whose outputs are wanted besides its last hidden state.
        progress: told how many tokens are done since it was last told.

    Returns:
        ``features`` `bfloat16[tokens, width]` (see `HiddenStates`), ``teacher_ids`` `int32[tokens, TOP]` and
        ``teacher_log_probs`` `float16[tokens, TOP]`, on the CPU.
    """
    return read_states(Teacher(model, layers), shard.tokens, shard.starts.tolist(), torch.device("cpu"), progress)


def read_states(
    teacher: Teacher,
    tokens: torch.Tensor,
    starts: list[int],
    device: torch.device,
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[str, torch.Tensor]:
    """What `teacher_states` returns, on any device.

    Args:
        teacher: who is asked.
        tokens: conversations one behind the other, `int[tokens]`.
        starts: where each begins, and the end of the last one.
        device: where the answer is put.
        progress: see `teacher_states`.
    """
    config = teacher.model.config
    top, width = min(TOP, config.vocab_size), (len(teacher.layers) + 1) * config.hidden_size
    features = torch.empty(len(tokens), width, dtype=torch.bfloat16, device=device)
    ids = torch.empty(len(tokens), top, dtype=torch.int32, device=device)
    log_probs = torch.empty(len(tokens), top, dtype=torch.float16, device=device)
    for spans in _batches(starts, teacher.batch_tokens):
        where = torch.cat([torch.arange(start, end) for start, end in spans]).to(device)
        answer = teacher.ask([tokens[start:end] for start, end in spans])
        for kept, part in zip((features, ids, log_probs), answer, strict=True):
            kept[where] = part.to(device, kept.dtype)
        progress(len(where))
    return {"features": features, "teacher_ids": ids, "teacher_log_probs": log_probs}


def _batches(bounds: list[int], batch_tokens: int) -> Iterator[list[tuple[int, int]]]:
    """Conversations of like length together, about `batch_tokens` tokens at a time."""
    spans = sorted(pairwise(bounds), key=lambda span: span[1] - span[0])
    batch: list[tuple[int, int]] = []
    for span in spans:
        if batch and (len(batch) + 1) * (span[1] - span[0]) > batch_tokens:
            yield batch
            batch = []
        batch.append(span)
    yield batch

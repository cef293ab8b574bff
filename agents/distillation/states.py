"""What the teacher says at every position, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from transformers import PreTrainedModel

from agents.distillation.corpus import TextShard
from env.models.states import HiddenStates

__all__ = ["TOP", "teacher_states"]

TOP = 32
"""next tokens remembered per position: they hold nearly all of the probability"""

_BATCH_TOKENS = 4096
_HEAD_ROWS = 512


@torch.inference_mode()
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
    tokens = len(shard.tokens)
    top = min(TOP, model.config.vocab_size)
    width = (len(layers) + 1) * model.config.hidden_size
    features = torch.empty(tokens, width, dtype=torch.bfloat16)
    ids = torch.empty(tokens, top, dtype=torch.int32)
    log_probs = torch.empty(tokens, top, dtype=torch.float16)
    states = HiddenStates(model, layers)
    for spans in _batches(shard.starts.tolist()):
        longest = max(end - start for start, end in spans)
        batch = torch.zeros(len(spans), longest, dtype=torch.long)
        for row, (start, end) in enumerate(spans):
            batch[row, : end - start] = shard.tokens[start:end]
        # Padding stands on the right, where causal attention never looks.
        model.get_decoder()(batch.to(model.device), use_cache=False)
        assert states.last is not None, "a forward records"
        where = torch.cat([torch.arange(start, end) for start, end in spans])
        rows = torch.cat([states.last[row, : end - start] for row, (start, end) in enumerate(spans)])
        features[where] = rows.to("cpu", torch.bfloat16)
        for first in range(0, len(rows), _HEAD_ROWS):
            hidden = rows[first : first + _HEAD_ROWS, -model.config.hidden_size :]
            logits = model.get_output_embeddings()(hidden).float()
            best, best_ids = logits.topk(top)
            positions = where[first : first + _HEAD_ROWS]
            log_probs[positions] = (best - logits.logsumexp(-1, keepdim=True)).to("cpu", torch.float16)
            ids[positions] = best_ids.to("cpu", torch.int32)
        progress(len(where))
    states.close()
    return {"features": features, "teacher_ids": ids, "teacher_log_probs": log_probs}


def _batches(bounds: list[int]) -> Iterator[list[tuple[int, int]]]:
    """Conversations of like length together, about `_BATCH_TOKENS` tokens at a time."""
    spans = sorted(pairwise(bounds), key=lambda span: span[1] - span[0])
    batch: list[tuple[int, int]] = []
    for span in spans:
        if batch and (len(batch) + 1) * (span[1] - span[0]) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(span)
    yield batch

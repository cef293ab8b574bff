"""The text and what the teacher says of it, in a device's memory: a batch is taken by indexing, whatever its size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch

from specgym.agents.distillation.data.batches import Batch, known_tokens
from specgym.agents.distillation.data.teacher import TOP, Teacher, read_states
from specgym.controllers.evaluation.results.provenance import machine


class DeviceDataset:
    """Conversations one behind the other; each token with what a state shard would hold of it.

    Args:
        teacher: asked once about every text; the shelf is on its device.
        texts: token ids of each conversation, `int64[length]`.
        progress: told how many tokens are done since it was last told.
    """

    def __init__(
        self,
        teacher: Teacher,
        texts: Sequence[torch.Tensor],
        progress: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        device = teacher.model.device
        starts = [0, *itertools.accumulate(len(text) for text in texts)]
        tokens = torch.cat(list(texts))
        self._states = read_states(teacher, tokens, starts, device, progress)
        self._tokens, self._starts = tokens.to(device), torch.tensor(starts, device=device)

    def batch(self, conversations: torch.Tensor, width: int, trimmed: torch.Tensor) -> Batch:
        """What `collate` makes of these conversations, padded to `width` rows. Never waits for the device.

        Args:
            conversations: their indices; -1 is a conversation without tokens, `int64[batch]`.
            width: rows of each, as many as the longest needs or more.
            trimmed: see `collate`; like `conversations` on the shelf's device.
        """
        rows = torch.arange(width, device=self._starts.device)
        where = self._starts[conversations][:, None] + rows  # [batch, rows]
        # The index -1 means the end of the text here and its beginning below: it has no rows.
        there = where + 1 < self._starts[conversations + 1][:, None]
        where = where.clamp(max=len(self._tokens) - 2)
        after, every = where + 1, there[..., None]
        ids = self._states["teacher_ids"][after].long() * every
        probs = self._states["teacher_log_probs"][after].float().exp() * every
        return Batch(
            self._tokens[after] * there,
            self._states["features"][where].masked_fill(~every, 0),
            *known_tokens(ids, probs, trimmed),
        )


def shelf_bytes(tokens: int, width: int) -> int:
    """Memory of a shelf of so many tokens [bytes]: their ids, states of `width` numbers, and the likeliest next tokens.

    Args:
        tokens: of all conversations [tokens].
        width: of the teacher's states, all layers together [numbers].
    """
    token, state, guess = (torch.int64.itemsize, torch.bfloat16.itemsize, torch.int32.itemsize + torch.float16.itemsize)
    return tokens * (token + width * state + TOP * guess)


def shelf_room(device: torch.device) -> int:
    """Memory that a shelf may take [bytes]: half of what a GPU has free now, the other half being for the updates.

    Of a computer it is half of all memory, free or not, so that an interrupted run goes on the way it began.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch holds in reserve is free too
        return torch.cuda.mem_get_info(device)[0] // 2
    return int(machine(device.type).memory_gib * 2**30) // 2

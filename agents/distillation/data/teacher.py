"""The teacher's labels at every position: stored, in a device's memory, or computed batch by batch."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from specgym.agents.distillation.data.corpus import LABELS, Batch, LabelledText, group_by_length, known_tokens
from specgym.controllers.evaluation.results.provenance import machine
from specgym.env.models.states import HiddenStates

TOP = 32
"""next tokens remembered per position: they hold nearly all of the probability"""

# Tokens that are read together, padding included, and rows of logits at a time.
_CPU_SIZES, _GPU_SIZES = (4096, 512), (32_768, 8192)


class Teacher:
    """Labels texts with a target's states and predictions, in the target's precision and on its device.

    Args:
        model: the target.
        layers: layers of the target whose outputs are recorded besides its last hidden state.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[int] = ()) -> None:
        self.model, self.layers = model, layers
        self.batch_tokens, self._head_rows = _CPU_SIZES if model.device.type == "cpu" else _GPU_SIZES

    @torch.no_grad()
    def read(self, texts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reads texts in one forward.

        Args:
            texts: token ids of each.

        Returns:
            For all texts back to back: features `[tokens, width]` (see `HiddenStates`), the most probable next tokens
            `int64[tokens, TOP]` and their log-probabilities `float32[tokens, TOP]`.
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

    def label(self, texts: Sequence[LabelledText]) -> list[LabelledText]:
        """Returns the texts with their labels."""
        features, *predictions = self.read([text.tokens for text in texts])
        lengths = [len(text.tokens) for text in texts]
        labels = zip(*(torch.split(part, lengths) for part in (features.bfloat16(), *predictions)), strict=True)
        return [
            dataclasses.replace(text, features=features, teacher_ids=ids, teacher_log_probs=log_probs)
            for text, (features, ids, log_probs) in zip(texts, labels, strict=True)
        ]

    def states(
        self,
        tokens: torch.Tensor,
        starts: Sequence[int],
        device: torch.device | str = "cpu",
        progress: Callable[[int], None] = lambda tokens: None,
    ) -> dict[str, torch.Tensor]:
        """Labels any number of texts, some of similar length at a time.

        Args:
            tokens: texts back to back, `int[tokens]`.
            starts: where each text begins and the last one ends.
            device: where the labels are stored.
            progress: called with the number of tokens read so far.

        Returns:
            ``features`` `bfloat16[tokens, width]` (see `HiddenStates`), ``teacher_ids`` `int32[tokens, TOP]` and
            ``teacher_log_probs`` `float16[tokens, TOP]`.
        """
        config = self.model.config
        top, width = min(TOP, config.vocab_size), (len(self.layers) + 1) * config.hidden_size
        columns = ((width, torch.bfloat16), (top, torch.int32), (top, torch.float16))
        labels = [torch.empty(len(tokens), size, dtype=dtype, device=device) for size, dtype in columns]
        spans, done = list(itertools.pairwise(starts)), 0
        lengths = [end - start for start, end in spans]
        for group in group_by_length(lengths, self.batch_tokens, lengths):
            rows = torch.cat([torch.arange(*spans[index]) for index in group]).to(device)
            parts = self.read([tokens[slice(*spans[index])] for index in group])
            for stored, part in zip(labels, parts, strict=True):
                stored[rows] = part.to(device, stored.dtype)
            done += len(rows)
            progress(done)
        return dict(zip(LABELS, labels, strict=True))


class DeviceDataset:
    """Texts back to back in a device's memory, from which a batch is taken by indexing.

    Each token has the labels that a state shard would hold.

    Args:
        teacher: reads every text once; the dataset is on its device.
        texts: token ids of each text, `int64[length]`.
        progress: called with the number of tokens read so far.
    """

    def __init__(
        self, teacher: Teacher, texts: Sequence[torch.Tensor], progress: Callable[[int], None] = lambda tokens: None
    ) -> None:
        device = teacher.model.device
        starts = [0, *itertools.accumulate(len(text) for text in texts)]
        tokens = torch.cat(list(texts))
        self._states = teacher.states(tokens, starts, device, progress)
        self._tokens, self._starts = tokens.to(device), torch.tensor(starts, device=device)

    def batch(self, chosen: torch.Tensor, width: int, trimmed: torch.Tensor) -> Batch:
        """Returns the batch that `collate` makes of these texts, padded to `width` rows. Never waits for the device.

        Args:
            chosen: indices of texts; -1 stands for a text without tokens, `int64[batch]`.
            width: rows of each text, at least as many as the longest needs.
            trimmed: see `collate`; on the dataset's device, as `chosen`.
        """
        rows = torch.arange(width, device=self._starts.device)
        place = self._starts[chosen][:, None] + rows  # [batch, rows]
        # For the index -1, `_starts` gives the end of all texts here and the beginning below: it has no rows.
        exists = place + 1 < self._starts[chosen + 1][:, None]
        place = place.clamp(max=len(self._tokens) - 2)
        ids = self._states["teacher_ids"][place + 1].long() * exists[..., None]
        probs = self._states["teacher_log_probs"][place + 1].float().exp() * exists[..., None]
        return Batch(
            self._tokens[place + 1] * exists,
            self._states["features"][place].masked_fill(~exists[..., None], 0),
            *known_tokens(ids, probs, trimmed),
        )


def dataset_bytes(tokens: int, width: int) -> int:
    """Returns the memory of a dataset [bytes]: token ids, states of `width` numbers and the likeliest next tokens.

    Args:
        tokens: tokens of all texts.
        width: numbers of the teacher's states, all layers together.
    """
    token, state, guess = (torch.int64.itemsize, torch.bfloat16.itemsize, torch.int32.itemsize + torch.float16.itemsize)
    return tokens * (token + width * state + TOP * guess)


def dataset_room(device: torch.device) -> int:
    """Returns the memory that a dataset may take [bytes].

    On a GPU that is half of what is free now: updates need the other half. On a CPU it is half of all memory, free or
    not, so that an interrupted run continues in the way it began.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch holds in reserve is free too
        return torch.cuda.mem_get_info(device)[0] // 2
    return int(machine(device.type).memory_gib * 2**30) // 2


def fits_on_device(teacher: Teacher, tokens: int) -> bool:
    """Returns whether a dataset of so many tokens may be made; warns if there is too little memory."""
    config, device = teacher.model.config, teacher.model.device
    needed, room = dataset_bytes(tokens, (len(teacher.layers) + 1) * config.hidden_size), dataset_room(device)
    if needed > room:
        warnings.warn(
            f"The teacher's states would take {needed / 2**30:.1f} GiB of the device's memory, where they may take "
            f"{room / 2**30:.1f}: the teacher reads every batch anew, which is slower.",
            stacklevel=2,
        )
    return needed <= room

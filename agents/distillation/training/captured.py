"""Updates of a feature draft from a shelf; on a GPU as CUDA graphs, so that it never waits for the processor.

An update is some thousand small kernels. Launched one by one they keep a GPU waiting most of the time; a graph is
launched at once, but always does the same to the same memory. So there is one for each shape of batch and number of
steps, which reads from fixed places which conversations and which learning rate are meant.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import nn

from specgym.agents.distillation.data.batches import padded_shape
from specgym.agents.distillation.data.device_dataset import DeviceDataset
from specgym.agents.distillation.model.students import FeatureStudent
from specgym.agents.distillation.training.updates import BETAS, descend
from specgym.env.models.fast.graphs import Graph, Graphs

_Shape: TypeAlias = tuple[int, int, int]
"""conversations, tokens of each, and steps of the draft on its own features"""

_UNREAD = 64  # under a second of work on a fast GPU, which an interrupt waits for


class ShelfUpdates:
    """Updates from a shelf. Where a graph cannot be captured, what it would do is launched piece by piece.

    Args:
        student: the draft.
        shelve: makes the shelf of all lessons; asked before the first update.
        lengths: of the lessons [tokens].
        batch_tokens: of a batch, see `plan_padded` [tokens].
        weight_decay: AdamW's.
        step_decay: weight of each further step's loss relative to the one before.
    """

    def __init__(
        self,
        student: FeatureStudent,
        shelve: Callable[[], DeviceDataset],
        lengths: Sequence[int],
        batch_tokens: int,
        *,
        weight_decay: float,
        step_decay: float,
    ) -> None:
        self.student, self.step_decay = student, step_decay
        self._shelve, self._lengths, self._batch_tokens = shelve, lengths, batch_tokens
        self._device = student.embedding.weight.device
        self._trimmed = student.trimmed.to(self._device)
        self.graphs: Graphs[_Shape, torch.Tensor] = Graphs(self._device, "An update", "Training")
        """the updates by shape; a graph's result is its losses, `float32[steps]`"""
        self._conversations: dict[_Shape, torch.Tensor] = {}  # that each graph learns from, `int64[batch]`
        self.unread = _UNREAD if self.graphs.capturing else 1
        self.optimizer = torch.optim.AdamW(
            student.module.parameters(),
            torch.zeros((), device=self._device),  # on the device, where a graph reads it
            BETAS,
            weight_decay=weight_decay,
            fused=True,
            capturable=self.graphs.capturing,
        )

    def prepare(self) -> None:
        """Asks the teacher about all lessons."""
        self._shelf = self._shelve()

    def __call__(self, batch: Sequence[int], update: int, rate: float) -> torch.Tensor:
        """See `Updates`."""
        count, width = padded_shape(max(self._lengths[index] for index in batch), self._batch_tokens)
        conversations = torch.tensor([*batch, *[-1] * (count - len(batch))])
        for group in self.optimizer.param_groups:
            group["lr"].fill_(rate)
        steps = self.student.steps_at(update)
        shape = count, width, steps
        captured = self._captured(shape) if self.graphs.capturing else None
        if captured is None:
            return self._update(conversations.to(self._device), width, steps)
        self._conversations[shape].copy_(conversations, non_blocking=True)
        return captured.launch().clone()

    def _update(self, conversations: torch.Tensor, width: int, steps: int) -> torch.Tensor:
        batch = self._shelf.batch(conversations, width, self._trimmed)
        # No weight that autocast has cast may be handed on from one update to another.
        with torch.autocast(self._device.type, torch.bfloat16, cache_enabled=False):
            losses = self.student.batch_losses(batch, steps, every_row=True)
        return descend(self.student.module, self.optimizer, losses, self.step_decay)

    def _captured(self, shape: _Shape) -> Graph[torch.Tensor] | None:
        """The graph for a shape of batch; None if there are none."""
        if shape not in self.graphs:
            count, width, steps = shape
            self._conversations[shape] = nobody = torch.full((count,), -1, device=self._device)
            with unchanged(self.student.module, self.optimizer):
                # A graph's gradients lie in its own memory.
                self.graphs.capture(
                    shape,
                    lambda: self._update(nobody, width, steps),
                    lambda: self.optimizer.zero_grad(set_to_none=True),
                )
        return self.graphs.get(shape)


@contextlib.contextmanager
def unchanged(module: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Undoes what the block does to weights and to AdamW's state, where they lie: graphs know them by their place.

    State that is new after the block becomes what AdamW begins with, zeros.

    Args:
        module: what is trained.
        optimizer: AdamW over its weights.
    """

    def tensors() -> list[torch.Tensor]:
        weights = list(module.parameters())
        return [*weights, *(each for weight in weights for each in optimizer.state.get(weight, {}).values())]

    before = {tensor: tensor.detach().clone() for tensor in tensors()}
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor in tensors():
                tensor.copy_(before[tensor]) if tensor in before else tensor.zero_()

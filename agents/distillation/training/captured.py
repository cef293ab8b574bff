"""Trains a feature draft from a `DeviceDataset`; on a GPU with CUDA graphs, so that it never waits for the processor.

An update is about a thousand small kernels. Launched one by one they keep a GPU waiting most of the time. A graph is
launched at once, but always does the same work on the same memory. So there is one graph for each shape of batch and
number of steps. It reads the chosen texts and the learning rate from fixed places.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from specgym.agents.distillation.data.corpus import LabelledText, padded_shape
from specgym.agents.distillation.data.teacher import DeviceDataset
from specgym.agents.distillation.distillation_config import TrainingConfig
from specgym.agents.distillation.model.students import FeatureStudent
from specgym.agents.distillation.training.trainer import Trainer
from specgym.env.models.fast.graphs import Graph, Graphs

_Shape: TypeAlias = tuple[int, int, int]
"""texts, tokens of each, and steps of the draft on its own features"""

_MAX_UNREAD = 64  # less than a second of work on a fast GPU, for which an interrupt waits


class CapturedTrainer(Trainer):
    """Trains from a dataset on the device. Where a graph cannot be captured, its kernels are launched one by one.

    Args:
        student: the draft.
        texts: training texts.
        config: how to train.
        make_dataset: makes the dataset of all texts; called before the first update.
        checkpoint: see `Trainer`.
        settings: see `Trainer`.
    """

    student: FeatureStudent

    def __init__(
        self,
        student: FeatureStudent,
        texts: Sequence[LabelledText],
        config: TrainingConfig,
        make_dataset: Callable[[], DeviceDataset],
        *,
        checkpoint: Path | None = None,
        settings: str = "",
    ) -> None:
        self.make_dataset = make_dataset
        self._lengths = [len(text.tokens) for text in texts]
        self._device = student.embedding.weight.device
        self._trimmed = student.trimmed.to(self._device)
        self.graphs: Graphs[_Shape, torch.Tensor] = Graphs(self._device, "An update", "Training")
        """the updates by shape; a graph's result is its losses, `float32[steps]`"""
        self._chosen: dict[_Shape, torch.Tensor] = {}  # texts that each graph learns from, `int64[batch]`
        self.max_unread = _MAX_UNREAD if self.graphs.capturing else 1
        super().__init__(student, texts, config, checkpoint, settings, padded=True)

    def make_optimizer(self, **options: Any) -> torch.optim.AdamW:
        """See `Trainer.make_optimizer`. The learning rate is on the device, where a graph reads it."""
        rate = torch.zeros((), device=self._device)
        return super().make_optimizer(lr=rate, fused=True, capturable=self.graphs.capturing, **options)

    def prepare(self) -> None:
        """Lets the teacher read all texts."""
        self.dataset = self.make_dataset()

    def update(self, number: int) -> torch.Tensor:
        """See `Trainer.update`."""
        for group in self.optimizer.param_groups:
            group["lr"].fill_(self.learning_rate(number))
        return self.learn(self.plan[number], self.student.steps_at(number))

    def learn(self, batch: Sequence[int], steps: int) -> torch.Tensor:
        """Learns from texts at the current learning rate; returns the losses, `float32[steps]`."""
        count, width = padded_shape(max(self._lengths[index] for index in batch), self.config.batch_tokens)
        chosen = torch.tensor([*batch, *[-1] * (count - len(batch))])
        shape = count, width, steps
        graph = self._captured(shape) if self.graphs.capturing else None
        if graph is None:
            return self._learn(chosen.to(self._device), width, steps)
        self._chosen[shape].copy_(chosen, non_blocking=True)
        return graph.launch().clone()

    def _learn(self, chosen: torch.Tensor, width: int, steps: int) -> torch.Tensor:
        batch = self.dataset.batch(chosen, width, self._trimmed)
        # Weights that autocast has cast must not be reused by the next update.
        with torch.autocast(self._device.type, torch.bfloat16, cache_enabled=False):
            losses = self.student.batch_losses(batch, steps, every_row=True)
        return self.descend(losses)

    def _captured(self, shape: _Shape) -> Graph[torch.Tensor] | None:
        """Returns the graph for a shape of batch; None if it cannot be captured."""
        if shape not in self.graphs:
            count, width, steps = shape
            self._chosen[shape] = nothing = torch.full((count,), -1, device=self._device)
            with unchanged(self.student.module, self.optimizer):
                # A graph's gradients lie in its own memory.
                self.graphs.capture(shape, lambda: self._learn(nothing, width, steps), self.optimizer.zero_grad)
        return self.graphs.get(shape)


@contextlib.contextmanager
def unchanged(module: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Undoes, in place, what the block does to weights and to AdamW's state: graphs know tensors by their place.

    State that is new after the block becomes AdamW's first state, zeros.

    Args:
        module: the trained weights.
        optimizer: AdamW over the weights.
    """

    def tensors() -> list[torch.Tensor]:
        weights = list(module.parameters())
        return [*weights, *(state for weight in weights for state in optimizer.state.get(weight, {}).values())]

    before = {tensor: tensor.detach().clone() for tensor in tensors()}
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor in tensors():
                tensor.copy_(before[tensor]) if tensor in before else tensor.zero_()

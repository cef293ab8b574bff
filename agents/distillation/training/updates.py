"""What an update of a draft's weights is: the teacher is asked for a batch, and the weights go down the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import nn

from specgym.agents.distillation.data.corpus import Lesson
from specgym.agents.distillation.model.students import Student

BETAS = (0.9, 0.95)
"""AdamW's decay rates"""


class Updates(Protocol):
    """A way to learn from batches."""

    optimizer: torch.optim.AdamW
    """over the student's weights"""
    unread: int
    """most updates whose losses stay on the device until they are read together"""

    def prepare(self) -> None:
        """Does what must be done before the first update, and may take long."""

    def __call__(self, batch: Sequence[int], update: int, rate: float) -> torch.Tensor:
        """Learns from a batch.

        Args:
            batch: which lessons it is made of.
            update: its number.
            rate: the learning rate.

        Returns:
            The loss at each step on the draft's own features, `float32[steps]`, on the device.
        """


class LessonUpdates:
    """Updates from lessons, one batch of them at a time; for either kind of draft.

    Args:
        student: the draft.
        lessons: what it learns from.
        teach: adds what the teacher says to the lessons of a batch, where they come without.
        weight_decay: AdamW's.
        step_decay: weight of each further step's loss relative to the one before.
    """

    unread = 1

    def __init__(
        self,
        student: Student,
        lessons: Sequence[Lesson],
        teach: Callable[[Sequence[Lesson]], Sequence[Lesson]],
        *,
        weight_decay: float,
        step_decay: float,
    ) -> None:
        self.student, self.lessons, self.teach, self.step_decay = student, lessons, teach, step_decay
        self.optimizer = torch.optim.AdamW(student.module.parameters(), betas=BETAS, weight_decay=weight_decay)

    def prepare(self) -> None:
        """Nothing: the teacher is asked when a batch is there."""

    def __call__(self, batch: Sequence[int], update: int, rate: float) -> torch.Tensor:
        """See `Updates`."""
        lessons = self.teach([self.lessons[index] for index in batch])
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.student.token_ids.device.type, torch.bfloat16):
            losses = self.student.losses(lessons, update)
        return descend(self.student.module, self.optimizer, losses, self.step_decay)


def descend(
    module: nn.Module, optimizer: torch.optim.Optimizer, losses: Sequence[torch.Tensor], step_decay: float
) -> torch.Tensor:
    """One step down the gradient of the losses' weighted mean. Never waits for the device.

    Args:
        module: what is trained.
        optimizer: over its weights.
        losses: a scalar for each step on the draft's own features.
        step_decay: weight of each further step relative to the one before.

    Returns:
        The losses, `float32[steps]`.
    """
    by_step = torch.stack(list(losses))
    weights = (step_decay ** torch.arange(len(by_step), dtype=torch.float64, device=by_step.device)).float()
    optimizer.zero_grad(set_to_none=True)
    (by_step @ weights / weights.sum()).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    return by_step.detach()

"""Training a draft on cached teacher states: the same loop for either kind, interrupted and resumed at will."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from specgym.agents.distillation.data.batches import plan_batches, plan_padded
from specgym.agents.distillation.data.corpus import Lesson
from specgym.agents.distillation.data.device_dataset import DeviceDataset
from specgym.agents.distillation.model.students import FeatureStudent, Student
from specgym.agents.distillation.training.captured import ShelfUpdates
from specgym.agents.distillation.training.draft_checkpoint import History, load_checkpoint, save_checkpoint
from specgym.agents.distillation.training.updates import LessonUpdates, Updates
from specgym.env.common.errors import ParameterError
from specgym.env.common.interrupts import interrupts_held
from specgym.env.tree.rounds import check_limit


@dataclass(frozen=True)
class TrainingConfig:
    """How a draft is trained.

    Raises:
        LimitError: a count that is not positive.
        ParameterError: another value outside its range.
    """

    epochs: int = 6
    """times that every conversation is seen"""
    updates: int | None = None
    """batches in all, in place of whole epochs"""
    batch_tokens: int = 2048
    """tokens of a batch, padding included [tokens]"""
    learning_rate: float = 1e-3
    """AdamW's learning rate at its highest"""
    warm_up: float = 0.03
    """share of the updates over which the learning rate rises; then it falls along a cosine to a hundredth"""
    weight_decay: float = 0.01
    """AdamW's weight decay"""
    steps: int = 3
    """steps on a feature draft's own features in every second batch; the others take one step"""
    step_decay: float = 0.8
    """weight of each further step's loss relative to the one before"""
    seed: int = 0
    """seed of the weights and of the order of the batches"""
    checkpoint_minutes: float = 2.0
    """how often everything is saved, which is what a killed run may lose [min]"""
    looks: int = 10
    """times that held-out agreement is measured on the way"""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_tokens", "steps", "looks"):
            check_limit(f"training.{name}", getattr(self, name))
        if self.updates is not None:
            check_limit("training.updates", self.updates)
        if not self.learning_rate > 0:
            raise ParameterError(f"training.learning_rate must be over 0; got {self.learning_rate}.")
        for name in ("weight_decay", "checkpoint_minutes"):
            if not getattr(self, name) >= 0:
                raise ParameterError(f"training.{name} must be 0 or more; got {getattr(self, name)}.")
        for name in ("warm_up", "step_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ParameterError(f"training.{name} must be within 0 and 1; got {getattr(self, name)}.")


class Trainer:
    """Trains a student in bfloat16 with float32 weights.

    Batches, their order and whatever is random in them are functions of the seed and the batch's number, so a run that
    was interrupted ends, on the CPU, with the very weights of one that was not.

    Args:
        student: the draft, in its first state.
        lessons: what it learns from.
        config: how.
        checkpoint: the run's file; a run that is there is gone on with. None keeps nothing.
        settings: everything that decides the run besides, to recognise a checkpoint of another one.
        teach: adds what the teacher says to the lessons of a batch, where they come without.
        padded: batches come in few shapes, see `plan_padded`; those from a shelf always do.
        shelve: makes a shelf of the lessons, which a feature draft's updates then take their batches from.

    Raises:
        ModelFileError: the checkpoint is corrupt.
        ParameterError: the checkpoint belongs to a run with other settings.
    """

    def __init__(
        self,
        student: Student,
        lessons: Sequence[Lesson],
        config: TrainingConfig,
        checkpoint: Path | None = None,
        settings: str = "",
        *,
        teach: Callable[[Sequence[Lesson]], Sequence[Lesson]] = lambda lessons: lessons,
        padded: bool = False,
        shelve: Callable[[], DeviceDataset] | None = None,
    ) -> None:
        self.student, self.config = student, config
        self.checkpoint, self.settings = checkpoint, f"{settings} {len(lessons)} lessons"
        lengths = [len(lesson.tokens) for lesson in lessons]
        self.plan = _plan(config, lengths, plan_padded if padded or shelve else plan_batches)
        decays = {"weight_decay": config.weight_decay, "step_decay": config.step_decay}
        self.updates: Updates
        if shelve is None:
            self.updates = LessonUpdates(student, lessons, teach, **decays)
        else:
            assert isinstance(student, FeatureStudent), "other drafts learn from lessons"
            self.updates = ShelfUpdates(student, shelve, lengths, config.batch_tokens, **decays)
        self.optimizer = self.updates.optimizer
        self.history = History()
        if checkpoint is not None and checkpoint.exists():
            self.history = load_checkpoint(checkpoint, student.module, self.optimizer, self.settings)

    def run(
        self,
        look: Callable[[], list[float]] = list,
        log: Callable[[History, int], None] = lambda history, updates: None,
    ) -> History:
        """Goes on to the end.

        Args:
            look: measures the held-out agreement, by step; asked `config.looks` times in all.
            log: told the history and the number of updates whenever losses are read, see `Updates.unread`.

        Raises:
            FileWriteError: the checkpoint could not be written.
            KeyboardInterrupt: after saving what there is.
        """
        history, updates = self.history, len(self.plan)
        self.student.module.train()
        if history.updates < updates:
            self.updates.prepare()
        saved = time.monotonic()
        with interrupts_held() as interrupted:
            while history.updates < updates and not interrupted():
                self._go_on()
                if history.updates * self.config.looks // updates > len(history.agreement):
                    history.agreement.append((history.updates, self._look(look)))
                log(history, updates)
                if time.monotonic() - saved > 60 * self.config.checkpoint_minutes:
                    self._save()
                    saved = time.monotonic()
            self._save()
        self.student.module.eval()
        return history

    def _go_on(self) -> None:
        """Learns from the next batches, up to the next look or as many as may be unread, and reads their losses."""
        history, updates = self.history, len(self.plan)
        next_look = math.ceil((len(history.agreement) + 1) * updates / self.config.looks)
        end = max(history.updates + 1, min(history.updates + self.updates.unread, next_look, updates))
        losses = [self._update(update) for update in range(history.updates, end)]
        read = torch.cat(losses).tolist()
        ends = itertools.accumulate(len(each) for each in losses)
        history.losses += [read[end - len(each) : end] for each, end in zip(losses, ends, strict=True)]
        history.updates = end

    def _update(self, update: int) -> torch.Tensor:
        rate = self.config.learning_rate * _rate(update / len(self.plan), self.config.warm_up)
        return self.updates(self.plan[update], update, rate)

    def _look(self, look: Callable[[], list[float]]) -> list[float]:
        self.student.module.eval()
        shares = look()
        self.student.module.train()
        return shares

    def _save(self) -> None:
        if self.checkpoint is not None:
            save_checkpoint(self.checkpoint, self.student.module, self.optimizer, self.history, self.settings)


def _plan(
    config: TrainingConfig, lengths: Sequence[int], plan: Callable[[Sequence[int], int, int], list[list[int]]]
) -> list[list[int]]:
    """Which lessons make up each batch; `plan` plans an epoch."""
    batches: list[list[int]] = []
    epoch = 0
    while epoch < config.epochs if config.updates is None else len(batches) < config.updates:
        batches += plan(lengths, config.batch_tokens, config.seed + epoch)
        epoch += 1
    return batches[: config.updates]


def _rate(done: float, warm_up: float) -> float:
    """Factor of the learning rate after a share `done` of the updates: a linear rise, then a cosine to 0.01."""
    if done < warm_up:
        return done / warm_up + 1e-3
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))

"""Trains a draft on the teacher's labels. The loop is the same for either kind and may be interrupted at any time."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specgym.agents.distillation.data.corpus import LabelledText, Teach, plan_batches, plan_padded
from specgym.agents.distillation.distillation_config import TrainingConfig
from specgym.agents.distillation.model.students import Student
from specgym.controllers.evaluation.results.figures import new_figure, save_figure
from specgym.env.common.checkpoint import load_checkpoint, save_checkpoint
from specgym.env.common.errors import ModelFileError
from specgym.env.common.processes import interrupts_held


@dataclass
class History:
    """Progress of a training run, stored in its checkpoint."""

    updates: int = 0
    """batches done"""
    losses: list[list[float]] = field(default_factory=list)
    """mean loss of each step, by batch; batches with fewer steps have shorter lists"""
    agreement: list[tuple[int, list[float]]] = field(default_factory=list)
    """batches done, and the held-out top-1 agreement by step at that time"""


class Trainer:
    """Trains a student in bfloat16 with float32 weights.

    The order of batches and all random numbers are functions of the seed and the batch's number. So, on the CPU, an
    interrupted run ends with the same weights as one that was not interrupted.

    Args:
        student: the draft before training.
        texts: training texts.
        config: how to train.
        checkpoint: file that an interrupted run continues from; None stores nothing.
        settings: everything else that decides the run; a checkpoint of other settings is refused.
        teach: labels the texts of a batch that have no labels.
        padded: batches have few shapes, see `plan_padded`.

    Raises:
        ModelFileError: the checkpoint is corrupt.
        ParameterError: the checkpoint belongs to a run with other settings.
    """

    max_unread = 1
    """most updates whose losses stay on the device until they are read together"""

    def __init__(
        self,
        student: Student,
        texts: Sequence[LabelledText],
        config: TrainingConfig,
        checkpoint: Path | None = None,
        settings: str = "",
        *,
        teach: Teach = lambda texts: texts,
        padded: bool = False,
    ) -> None:
        self.student, self.texts, self.config, self.teach = student, texts, config, teach
        self.checkpoint, self.settings = checkpoint, f"{settings} {len(texts)} lessons"  # as in earlier checkpoints
        self.plan = plan_updates(config, [len(text.tokens) for text in texts], padded)
        self.optimizer = self.make_optimizer()
        self.history = History()
        if checkpoint is not None and checkpoint.exists():
            self.history = load_history(checkpoint, student.module, self.optimizer, self.settings)

    def run(
        self,
        evaluate: Callable[[], list[float]] = list,
        log: Callable[[History, int], None] = lambda history, updates: None,
    ) -> History:
        """Trains to the end of the plan.

        Args:
            evaluate: measures the held-out agreement by step; called `config.evaluations` times in all.
            log: called with the history and the number of all updates whenever losses are read, see `max_unread`.

        Raises:
            FileWriteError: the checkpoint could not be written.
            KeyboardInterrupt: after the checkpoint is saved.
        """
        history, updates = self.history, len(self.plan)
        self.student.module.train()
        if history.updates < updates:
            self.prepare()
        saved = time.monotonic()
        with interrupts_held() as interrupted:
            while history.updates < updates and not interrupted():
                self._advance()
                if history.updates * self.config.evaluations // updates > len(history.agreement):
                    self.student.module.eval()
                    history.agreement.append((history.updates, evaluate()))
                    self.student.module.train()
                log(history, updates)
                if time.monotonic() - saved > 60 * self.config.checkpoint_minutes:
                    self._save()
                    saved = time.monotonic()
            self._save()
        self.student.module.eval()
        return history

    def _advance(self) -> None:
        """Learns from the next batches, up to the next evaluation or `max_unread`, and reads their losses."""
        history, updates = self.history, len(self.plan)
        evaluation = math.ceil((len(history.agreement) + 1) * updates / self.config.evaluations)
        end = max(history.updates + 1, min(history.updates + self.max_unread, evaluation, updates))
        losses = [self.update(number) for number in range(history.updates, end)]
        values = iter(torch.cat(losses).tolist())
        history.losses += [list(itertools.islice(values, len(by_step))) for by_step in losses]
        history.updates = end

    def make_optimizer(self, **options: Any) -> torch.optim.AdamW:
        """Returns the optimizer of the student's weights; `options` are further arguments of it."""
        weights, decay = self.student.module.parameters(), self.config.weight_decay
        return torch.optim.AdamW(weights, betas=(0.9, 0.95), weight_decay=decay, **options)

    def prepare(self) -> None:
        """Does what must be done before the first update and may take long: here nothing."""

    def update(self, number: int) -> torch.Tensor:
        """Learns from the plan's batch of that number.

        Returns:
            The loss at each step on the draft's own features, `float32[steps]`, on the device.
        """
        texts = self.teach([self.texts[index] for index in self.plan[number]])
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(number)
        with torch.autocast(self.student.token_ids.device.type, torch.bfloat16):
            losses = self.student.losses(texts, number)
        return self.descend(losses)

    def learning_rate(self, number: int) -> float:
        """Returns the learning rate of an update: a linear rise, then a cosine down to a hundredth."""
        done, warm_up = number / len(self.plan), self.config.warm_up
        if done < warm_up:
            factor = done / warm_up + 1e-3
        else:
            factor = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))
        return self.config.learning_rate * factor

    def descend(self, losses: Sequence[torch.Tensor]) -> torch.Tensor:
        """Takes one optimizer step on the losses' weighted mean. Never waits for the device.

        Args:
            losses: a scalar for each step on the draft's own features.

        Returns:
            The losses, `float32[steps]`.
        """
        by_step = torch.stack(list(losses))
        exponents = torch.arange(len(by_step), dtype=torch.float64, device=by_step.device)
        weights = (self.config.step_decay**exponents).float()
        self.optimizer.zero_grad(set_to_none=True)
        (by_step @ weights / weights.sum()).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.student.module.parameters(), 1.0)
        self.optimizer.step()
        return by_step.detach()

    def _save(self) -> None:
        if self.checkpoint is not None:
            save_checkpoint(self.checkpoint, self.student.module, self.optimizer, vars(self.history), self.settings)


def plan_updates(config: TrainingConfig, lengths: Sequence[int], padded: bool) -> list[list[int]]:
    """Returns the texts of each batch of the whole training."""
    plan = plan_padded if padded else plan_batches
    epochs = range(config.epochs) if config.updates is None else itertools.count()
    batches = (batch for epoch in epochs for batch in plan(lengths, config.batch_tokens, config.seed + epoch))
    return list(itertools.islice(batches, config.updates))


def load_history(path: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer, settings: str) -> History:
    """Returns the history in a checkpoint and puts its weights and optimizer state into place.

    Raises:
        ModelFileError, ParameterError: see `load_checkpoint`.
    """
    record = load_checkpoint(path, module, optimizer, settings)
    try:
        agreement = [(updates, shares) for updates, shares in record["agreement"]]
        return History(record["updates"], record["losses"], agreement)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path} is corrupt ({error}). Delete it and run the command again.") from error


_SMOOTHING = 50  # batches


class Curves(contextlib.AbstractContextManager["Curves"]):
    """Writes a training run's curves; a context manager.

    TensorBoard gets them during training if it is installed (extra ``train``).

    Args:
        folder: folder for TensorBoard's files and ``curves.png``.
        updates: batches whose losses an earlier run has written.
    """

    def __init__(self, folder: Path, updates: int = 0) -> None:
        self.folder, self._updates, self._evaluations = folder, updates, 0
        self._writer: Any = None
        with contextlib.suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

            self._writer = SummaryWriter(str(folder))

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def log(self, history: History) -> None:
        """Writes the losses and the held-out agreement that are new."""
        if self._writer is None:
            return
        new = [("loss", at, row) for at, row in enumerate(history.losses, start=1) if at > self._updates]
        new += [("held-out top-1", at, shares) for at, shares in history.agreement[self._evaluations :]]
        for name, at, values in new:
            for step, value in enumerate(values, start=1):
                self._writer.add_scalar(f"{name}/step {step}", value, at)
        self._updates, self._evaluations = len(history.losses), len(history.agreement)

    def draw(self, history: History) -> None:
        """Draws ``curves.png``. Raises `FileWriteError`."""
        figure, panels = new_figure("Training of the draft", (10, 4.4), (1, 2))
        losses, agreement = panels[0]
        for step in range(max(map(len, history.losses), default=0)):
            batches = [(at, row[step]) for at, row in enumerate(history.losses, start=1) if len(row) > step]
            at, values = np.array(batches).T
            window = min(_SMOOTHING, len(values))
            mean = np.convolve(values, np.ones(window) / window, "valid")  # shorter by the window but one
            losses.plot(at[window - 1 :], mean, label=f"step {step + 1}")
        losses.set(xlabel="batches", ylabel="cross-entropy", title=f"Training loss, mean of {_SMOOTHING} batches")
        for step, shares in enumerate(zip(*(shares for _, shares in history.agreement), strict=True)):
            agreement.plot([at for at, _ in history.agreement], shares, marker="o", label=f"step {step + 1}")
        agreement.set(xlabel="batches", ylabel="share of positions", title="Held-out top-1 agreement")
        for axes in (losses, agreement):
            if axes.lines:
                axes.legend()
        save_figure(figure, self.folder / "curves.png")

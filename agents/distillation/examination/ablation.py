"""What each choice in a feature draft's making is worth: variants trained for the same time on the same text.

Every variant differs from the base in one thing. The batches that fit into the time are counted from a few measured
ones, so a variant with dearer batches gets fewer of them, and its learning rate falls all the same to the end.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from specgym.agents.distillation.data.batches import frequent_tokens
from specgym.agents.distillation.data.corpus import Lesson
from specgym.agents.distillation.examination.agreement import Agreement, agreement_at_work
from specgym.agents.distillation.model.draft_shapes import FeatureShape, new_network
from specgym.agents.distillation.model.scales import layer_scales
from specgym.agents.distillation.model.students import FeatureStudent
from specgym.agents.distillation.training.trainer import Trainer, TrainingConfig
from specgym.env.drafts.network import save_network

_TRIAL = 24  # batches that a batch's time is measured on
_GLANCE = 4  # the same where there is no time for as many


@dataclass(frozen=True)
class Variant:
    """One way to make a feature draft."""

    name: str
    shape: FeatureShape
    training: TrainingConfig


@dataclass(frozen=True)
class Finding:
    """What came of a variant."""

    name: str
    parameters: int
    """weights of the draft"""
    coverage: float
    """share of the training text that its head knows"""
    updates: int
    """batches that fitted into the time"""
    seconds_per_update: float
    """time of a batch when measured [s]"""
    seconds: float
    """time of the training [s]"""
    agreement: Agreement
    """on all held-out answers"""
    greedy: Agreement
    """on the greedy ones"""


def variants(feature_layers: tuple[int, ...]) -> list[Variant]:
    """The base and everything that differs from it in one choice.

    Args:
        feature_layers: low, middle and high layers of the target, for the variant that fuses them.
    """
    base = Variant("base", FeatureShape(), TrainingConfig())

    def other(name: str, training: dict[str, Any] | None = None, **shape: Any) -> Variant:
        return Variant(
            name, dataclasses.replace(base.shape, **shape), dataclasses.replace(base.training, **(training or {}))
        )

    return [
        base,
        other("fused target layers", feature_layers=feature_layers),
        other("two decoder layers", layers=2),
        other("begins as the target's last layer", begin="target"),
        other("head of 4,096 tokens", vocabulary=4096),
        other("head of 16,384 tokens", vocabulary=16384),
        other("no steps on own features", training={"steps": 1}),
        other("five steps on own features", training={"steps": 5}),
        other("later steps count as much as the first", training={"step_decay": 1.0}),
        other("twice the learning rate", training={"learning_rate": 2e-3}),
    ]


def train_variant(
    variant: Variant,
    model: PreTrainedModel,
    lessons: tuple[Sequence[Lesson], Sequence[Lesson]],
    seconds: float,
    path: Path,
    *,
    teach: Callable[[Sequence[Lesson]], Sequence[Lesson]] = lambda lessons: lessons,
    log: Callable[[int, int], None] = lambda update, updates: None,
) -> Finding:
    """Trains a variant for a given time, writes its weights and measures its agreement.

    Args:
        variant: what to train.
        model: the target.
        lessons: those to learn from, and those held out.
        seconds: time that the training may take [s].
        path: file for its weights.
        teach: see `Trainer`.
        log: told the batches done and their number in all.

    Raises:
        FileWriteError: the weights could not be written.
    """
    seen, held_out = lessons
    embedding = model.get_input_embeddings()
    frequent, coverage = frequent_tokens(seen, embedding.num_embeddings, variant.shape.vocabulary)
    scales = layer_scales(seen, teach, len(variant.shape.feature_layers), embedding.embedding_dim)

    def student() -> FeatureStudent:
        network = new_network(model, frequent, variant.shape, variant.training.seed)
        return FeatureStudent(network, embedding, variant.training.steps, scales)

    def trainer(updates: int) -> Trainer:
        return Trainer(student(), seen, dataclasses.replace(variant.training, updates=updates), teach=teach)

    each = _seconds_per_update(trainer(_GLANCE))
    if _TRIAL * each < seconds:
        each = min(each, _seconds_per_update(trainer(_TRIAL)))
    course = trainer(max(1, int(seconds / each)))
    before = time.perf_counter()
    history = course.run(log=lambda history, updates: log(history.updates, updates))
    elapsed = time.perf_counter() - before
    trained = course.student
    assert isinstance(trained, FeatureStudent)
    save_network(trained.network, path, {"variant": variant.name})
    greedy = [lesson for lesson in held_out if lesson.temperature == 0]
    return Finding(
        variant.name,
        sum(parameter.numel() for parameter in trained.module.parameters()),
        coverage,
        history.updates,
        each,
        elapsed,
        agreement_at_work(trained, held_out),
        agreement_at_work(trained, greedy),
    )


def _seconds_per_update(trial: Trainer) -> float:
    """Mean time of two successive batches, of which one takes several steps: the fastest two, to leave noise out.

    Args:
        trial: a trainer that has not begun.
    """
    ends: list[float] = []
    trial.run(log=lambda history, updates: ends.append(time.perf_counter()))
    return min(later - earlier for earlier, later in zip(ends, ends[2:], strict=False)) / 2

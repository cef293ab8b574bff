"""Compares choices in the making of a feature draft: variants trained for the same time on the same text.

Every variant differs from the base in one choice. The number of batches that fit into the time is estimated from a few
measured ones. So a variant with slower batches gets fewer of them, and its learning rate still falls to the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from specgym.agents.distillation.data.corpus import LabelledText, Teach, frequent_tokens
from specgym.agents.distillation.distillation_config import FeatureShape, TrainingConfig
from specgym.agents.distillation.examination.agreement import Agreement, bfloat16_agreement
from specgym.agents.distillation.model.draft_shapes import new_network
from specgym.agents.distillation.model.students import FeatureStudent, layer_scales
from specgym.agents.distillation.training.trainer import Trainer
from specgym.controllers.evaluation.results.tables import Table, cut, markdown_page, with_interval
from specgym.env.drafts.network import save_network

_TRIAL_UPDATES = 24  # batches that a batch's time is measured on
_SHORT_TRIAL_UPDATES = 4  # the same if there is no time for as many


@dataclass(frozen=True)
class Variant:
    """One way to make a feature draft."""

    name: str
    shape: FeatureShape = field(default_factory=FeatureShape)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True)
class VariantResult:
    """Training time and agreement of a variant."""

    name: str
    parameters: int
    """weights of the draft"""
    coverage: float
    """share of the training text that its head knows"""
    updates: int
    """batches that fitted into the time"""
    seconds_per_update: float
    """measured time of a batch [s]"""
    seconds: float
    """time of the training [s]"""
    agreement: Agreement
    """on all held-out answers"""
    greedy: Agreement
    """on the greedy held-out answers"""


def variants(feature_layers: tuple[int, ...]) -> list[Variant]:
    """Returns the base, and variants that differ from it in one choice.

    Args:
        feature_layers: low, middle and high layers of the target, for the variant that fuses them.
    """
    return [
        Variant("base"),
        Variant("fused target layers", FeatureShape(feature_layers=feature_layers)),
        Variant("two decoder layers", FeatureShape(layers=2)),
        Variant("begins as the target's last layer", FeatureShape(begin="target")),
        Variant("head of 4,096 tokens", FeatureShape(vocabulary=4096)),
        Variant("head of 16,384 tokens", FeatureShape(vocabulary=16384)),
        Variant("no steps on own features", training=TrainingConfig(steps=1)),
        Variant("five steps on own features", training=TrainingConfig(steps=5)),
        Variant("later steps count as much as the first", training=TrainingConfig(step_decay=1.0)),
        Variant("twice the learning rate", training=TrainingConfig(learning_rate=2e-3)),
    ]


def train_variant(
    variant: Variant,
    model: PreTrainedModel,
    texts: tuple[Sequence[LabelledText], Sequence[LabelledText]],
    seconds: float,
    path: Path,
    *,
    teach: Teach = lambda texts: texts,
    log: Callable[[int, int], None] = lambda update, updates: None,
) -> VariantResult:
    """Trains a variant for a given time, writes its weights and measures its agreement.

    Args:
        variant: the variant.
        model: the target.
        texts: training texts and held-out texts.
        seconds: time that the training may take [s].
        path: file for its weights.
        teach: see `Trainer`.
        log: called with the batches done and their number in all.

    Raises:
        FileWriteError: the weights could not be written.
    """
    training, held_out = texts
    embedding = model.get_input_embeddings()
    frequent, coverage = frequent_tokens(training, embedding.num_embeddings, variant.shape.vocabulary)
    scales = layer_scales(training, teach, len(variant.shape.feature_layers), embedding.embedding_dim)

    def new_trainer(updates: int) -> tuple[FeatureStudent, Trainer]:
        network = new_network(model, frequent, variant.shape, variant.training.seed)
        student = FeatureStudent(network, embedding, variant.training.steps, scales)
        return student, Trainer(student, training, replace(variant.training, updates=updates), teach=teach)

    update_seconds = _seconds_per_update(new_trainer(_SHORT_TRIAL_UPDATES)[1])
    if _TRIAL_UPDATES * update_seconds < seconds:
        update_seconds = min(update_seconds, _seconds_per_update(new_trainer(_TRIAL_UPDATES)[1]))
    student, trainer = new_trainer(max(1, int(seconds / update_seconds)))
    start = time.perf_counter()
    history = trainer.run(log=lambda history, updates: log(history.updates, updates))
    elapsed = time.perf_counter() - start
    save_network(student.network, path, {"variant": variant.name})
    return VariantResult(
        variant.name,
        sum(parameter.numel() for parameter in student.module.parameters()),
        coverage,
        history.updates,
        update_seconds,
        elapsed,
        bfloat16_agreement(student, held_out),
        bfloat16_agreement(student, [text for text in held_out if text.temperature == 0]),
    )


def _seconds_per_update(trainer: Trainer) -> float:
    """Measures the time of an update: half of two successive ones, since every second takes several steps.

    The fastest two count, which leaves noise out.

    Args:
        trainer: a trainer that has not begun.
    """
    ends: list[float] = []
    trainer.run(log=lambda history, updates: ends.append(time.perf_counter()))
    return min(later - earlier for earlier, later in zip(ends, ends[2:], strict=False)) / 2


def ablation_page(record: dict[str, Any]) -> str:
    """Returns a Markdown page with one row a variant; numbers are cut, never rounded up.

    Args:
        record: ``results.json`` of the ablation.
    """
    machine, cores = record["machine"], record["machine"]["cores"]
    explanation = (
        "Every variant differs from the base in one choice and was trained on the same text for "
        f"{record['minutes']:g} minutes on {cores} core{'s' * (cores != 1)} ({machine['cpu']}).\n\n"
        "- Agreement: share of held-out positions at which the draft's first guess is the target's most probable "
        "token. Top-4: one of its first four guesses is, at the first step, on greedy answers.\n"
        f"- Speed-up: over plain decoding, with `{record['controller']}`, on {record['prompt_count']} built-in prompts "
        f"of {record['max_new_tokens']} tokens, temperature 0, with a 95 % interval.\n"
        f"- Fused layers: {', '.join(map(str, record['feature_layers']))} and the last hidden state."
    )
    rows = [_row(variant) for variant in record["variants"]]
    table = Table(list(rows[0]), [list(row.values()) for row in rows])
    return markdown_page("The choices in the feature draft's making", record, [explanation, table.markdown()])


def _row(variant: dict[str, Any]) -> dict[str, str]:
    """Returns a row of the table by its headers."""
    return {
        "variant": variant["name"],
        "weights": f"{variant['parameters'] / 1e6:.1f} M",
        "batches": f"{variant['updates']:,}",
        "ms a batch": f"{1000 * variant['seconds_per_update']:.0f}",
        "top-1 by step (all answers)": " / ".join(cut(share, 3) for share in variant["agreement"]["top1"][:3]),
        "(greedy)": " / ".join(cut(share, 3) for share in variant["greedy"]["top1"][:3]),
        "top-4": cut(variant["greedy"]["top4"][0], 3),
        "speed-up": with_interval(variant["speedup"], variant["speedup_ci95"]),
        "τ": cut(variant["mean_accepted_tokens"], 2),
    }

"""Agreement is how often the draft is right in decoding, counted position by position."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from specgym.agents.distillation.data.corpus import LabelledText
from specgym.agents.distillation.distillation_config import TrainingConfig
from specgym.agents.distillation.examination.agreement import bfloat16_agreement, measure_agreement
from specgym.agents.distillation.model.students import CausalStudent, FeatureStudent, Student
from specgym.agents.distillation.training.trainer import Trainer
from specgym.env.drafts import FeatureDraft
from specgym.env.drafts.feature import LeanDraft
from tests.support.distilling import FEATURE_SHAPES, guesses_at_work, label_texts, make_conversation
from tests.support.tiny_models import VOCABULARY, feature_draft, noisy_copy, tiny_llama, tiny_target

CONVERSATIONS = [make_conversation(14, 1, 6), make_conversation(20, 2, 1), make_conversation(10, 3, 5)]
STEPS = 4


def assert_counted(
    student: Student, texts: list[LabelledText], ranking: Callable[[LabelledText, int, int], list[int]]
) -> None:
    """Asserts that agreement equals a count over all positions.

    Args:
        student: the draft.
        texts: some conversations.
        ranking: returns the draft's tokens at a position after so many further steps, best first.
    """
    hits, seen = torch.zeros(STEPS, 2), torch.zeros(STEPS)
    for text in texts:
        for position, step in itertools.product(range(text.answer_start, len(text.tokens)), range(STEPS)):
            if position - step < 2:  # a draft needs a token with a feature before it
                continue
            guess, best = ranking(text, position, step), int(text.teacher_ids[position - 1, 0])
            hits[step] += torch.tensor([guess[0] == best, best in guess[:4]])
            seen[step] += 1
    agreement = measure_agreement(student, texts, STEPS)
    assert agreement.positions == seen[0]
    assert agreement.top1 == pytest.approx((hits[:, 0] / seen).tolist())
    assert agreement.top4 == pytest.approx((hits[:, 1] / seen).tolist())
    assert 0 < agreement.top1[0] < agreement.top4[0] < 0.95, "the test would be vacuous"


@pytest.mark.parametrize(("layers", "feature_layers"), FEATURE_SHAPES)
def test_it_counts_what_a_feature_draft_guesses_in_decoding(
    tmp_path: Path, layers: int, feature_layers: tuple[int, ...]
) -> None:
    target = tiny_target()
    draft = feature_draft(target, layers=layers, feature_layers=feature_layers)
    with target.lent() as model:
        texts = label_texts(model, CONVERSATIONS, tmp_path, feature_layers)
    train_a_little(draft, texts)

    def ranking(text: LabelledText, position: int, step: int) -> list[int]:
        return list(guesses_at_work(draft, text, position, step))

    with torch.inference_mode():
        assert_counted(FeatureStudent(draft.network, draft.embedding), texts, ranking)


def train_a_little(draft: FeatureDraft, texts: list[LabelledText]) -> None:
    """Trains the draft so that it is sometimes right."""
    embedding = nn.Embedding.from_pretrained(draft.embedding.weight.detach().float())
    student = FeatureStudent(draft.network.float(), embedding)
    Trainer(student, texts, TrainingConfig(epochs=15, learning_rate=5e-3)).run()
    draft.lean = LeanDraft(draft.network.double(), draft.embedding.weight)


def test_it_counts_what_a_causal_draft_guesses_in_decoding(tmp_path: Path) -> None:
    target = tiny_llama()
    draft = noisy_copy(target, 0.4)
    texts = label_texts(target, CONVERSATIONS, tmp_path)

    def ranking(text: LabelledText, position: int, step: int) -> list[int]:
        order = draft(text.tokens[None, :position]).logits[0, -1].argsort(descending=True)
        return list(order.tolist())

    with torch.inference_mode():
        assert_counted(CausalStudent(draft, torch.arange(VOCABULARY), 1, 0), texts, ranking)


def test_decoding_is_measured_in_bfloat16(tmp_path: Path) -> None:
    target = tiny_llama(dtype=torch.float32)
    texts = label_texts(target, CONVERSATIONS, tmp_path)
    student = CausalStudent(target, torch.arange(VOCABULARY), 1, 0)
    seen = set()
    student.module.lm_head.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    assert measure_agreement(student, texts).top1[0] == 1, "it agrees with itself"
    assert bfloat16_agreement(student, texts).top1[0] > 0.9
    assert seen == {torch.float32, torch.bfloat16}

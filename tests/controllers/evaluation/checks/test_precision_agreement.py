"""A model agrees with itself, and the less with another the more they differ."""

from __future__ import annotations

import math

import pytest
import torch

from specgym.controllers.evaluation.checks.precision_agreement import find_agreement
from specgym.env.models.target import TargetModel
from tests.support.tiny_models import make_prompt, noisy_copy, tiny_llama

TEXTS = [make_prompt(seed, 12) for seed in range(6)]


def test_a_model_agrees_with_itself_and_less_with_others_the_farther_they_are() -> None:
    model = tiny_llama()
    agreements = [
        find_agreement(TargetModel(model, frozenset()), TargetModel(noisy_copy(model, amount), frozenset()), TEXTS)
        for amount in (0.0, 0.005, 1.0)
    ]
    assert {agreement.positions for agreement in agreements} == {6 * 11}
    assert agreements[0].same == 1
    assert abs(agreements[0].nats) < 1e-6
    assert agreements[1].same > 0.8
    assert agreements[2].same < agreements[1].same <= 1
    assert abs(agreements[1].nats) < abs(agreements[2].nats)


def test_the_loss_is_the_mean_difference_of_the_log_probabilities_of_the_next_tokens() -> None:
    models = [tiny_llama(seed) for seed in (0, 1)]
    agreement = find_agreement(*(TargetModel(model, frozenset()) for model in models), TEXTS[:2])
    expected, count = 0.0, 0
    for text in TEXTS[:2]:
        for position in range(1, len(text)):
            with torch.inference_mode():
                read = torch.tensor([text[:position]])
                likely = [model(read).logits[0, -1].softmax(dim=0)[text[position]].item() for model in models]
            expected += math.log(likely[0]) - math.log(likely[1])
            count += 1
    assert agreement.positions == count
    assert agreement.nats == pytest.approx(expected / count, rel=1e-4)

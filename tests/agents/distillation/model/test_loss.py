"""The loss and its gradient equal those of autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specgym.agents.distillation.model.students import soft_cross_entropy

VOCABULARY = 11


def plain_loss(logits: torch.Tensor, ids: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """The definition, with autograd's gradient."""
    return -(probs * logits.log_softmax(-1).gather(-1, ids)).sum(-1).mean()


def batch(rows: int, seed: int, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns logits, ids of which some occur twice, and probabilities that do not sum to 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, VOCABULARY, generator=generator)
    ids = torch.randint(VOCABULARY, (rows, 4), generator=generator)
    return logits.requires_grad_(), ids, torch.rand(rows, 4, generator=generator) / 4


class TestSoftCrossEntropy:
    @given(rows=st.sampled_from([1, 3, 64, 65, 150]), seed=st.integers(0, 99), weight=st.sampled_from([1.0, 0.3]))
    def test_value_and_gradient_are_those_of_the_definition(self, rows: int, seed: int, weight: float) -> None:
        logits, ids, probs = batch(rows, seed)
        loss = soft_cross_entropy(logits, ids, probs)
        (weight * loss).backward()
        twin = logits.detach().double().requires_grad_()
        expected = plain_loss(twin, ids, probs.double())
        (weight * expected).backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert logits.grad is not None
        assert twin.grad is not None
        torch.testing.assert_close(logits.grad.double(), twin.grad, rtol=1e-4, atol=1e-7)

    def test_logits_of_any_size_neither_overflow_nor_vanish(self) -> None:
        logits, ids, probs = batch(5, 0, scale=1e4)
        loss = soft_cross_entropy(logits, ids, probs)
        loss.backward()
        assert loss.item() == pytest.approx(plain_loss(logits.detach(), ids, probs).item(), rel=1e-5)
        assert logits.grad is not None
        assert logits.grad.isfinite().all()

    def test_in_half_precision_it_differs_by_rounding_only(self) -> None:
        logits, ids, probs = batch(70, 1)
        half = logits.detach().to(torch.bfloat16).requires_grad_()
        soft_cross_entropy(half, ids, probs).backward()
        twin = half.detach().float().requires_grad_()
        plain_loss(twin, ids, probs).backward()
        assert half.grad is not None
        assert twin.grad is not None
        assert half.grad.dtype == torch.bfloat16
        torch.testing.assert_close(half.grad.float(), twin.grad, rtol=2**-7, atol=1e-5)

    def test_a_second_backward_is_an_error_and_not_a_wrong_gradient(self) -> None:
        loss = soft_cross_entropy(*batch(3, 0))
        loss.backward(retain_graph=True)
        with pytest.raises(AttributeError):
            loss.backward()

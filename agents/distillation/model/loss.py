"""Cross-entropy to soft targets, with its gradient made on the way: training spends most of its time here otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

_CPU_ROWS, _GPU_ROWS = 64, 8192  # rows at a time: 64 of 8,192 float32 numbers stay in a core's cache


class _SoftCrossEntropy(torch.autograd.Function):
    """Log-softmax and gather would write and read five float32 tensors of the logits' size; this reads the logits once
    and writes the gradient once, in the logits' own precision.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, ids: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        gradient = torch.empty_like(logits)
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        count = _CPU_ROWS if logits.device.type == "cpu" else _GPU_ROWS
        for first in range(0, len(logits), count):
            rows = slice(first, first + count)
            scores, weights = logits[rows].float(), probs[rows]
            expected = (weights * scores.gather(-1, ids[rows])).sum(-1)
            peak, mass = scores.amax(-1, keepdim=True), weights.sum(-1, keepdim=True)
            odds = (scores - peak).exp_()
            norm = odds.sum(-1, keepdim=True)
            total += (mass * (norm.log() + peak)).sum() - expected.sum()
            gradient[rows] = odds.mul_(mass / norm).scatter_add_(-1, ids[rows], -weights).div_(len(logits))
        ctx.gradient = gradient
        return (total / len(logits)).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gradient, ctx.gradient = ctx.gradient, None  # a second one would be scaled twice: better none
        return gradient.mul_(outer), None, None


def soft_cross_entropy(logits: torch.Tensor, ids: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of rows of logits to probabilities of some of their tokens; all others count as 0.

    The mean of -sum_k p_k log softmax(z)_k, whose gradient in z is sum(p) softmax(z) - p; computed in float32.

    Args:
        logits: `[rows, vocabulary]`.
        ids: tokens that have a probability, `int64[rows, k]`; one that comes twice counts twice.
        probs: their probabilities, `float32[rows, k]`.

    Returns:
        A scalar; `backward` can be called once and reaches `logits` only.
    """
    loss: torch.Tensor = _SoftCrossEntropy.apply(logits, ids, probs)  # type: ignore[no-untyped-call]
    return loss

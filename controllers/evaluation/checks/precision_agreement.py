"""Checks how far two precisions of a model agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from specgym.env.models.target import TargetModel


@dataclass(frozen=True)
class Agreement:
    """How far one model's predictions of texts agree with another's."""

    positions: int  # tokens that both predicted
    same: float  # share of the positions at which both have the same likeliest token
    nats: float  # mean loss of the tokens' log-probability; below 0: the other model predicts them better [nats]


@torch.inference_mode()
def find_agreement(one: TargetModel, other: TargetModel, texts: Sequence[tuple[int, ...]]) -> Agreement:
    """Compares two models' predictions of every token of each text after the first.

    Args:
        one: the reference.
        other: the model to compare.
        texts: token ids, at least two tokens each.
    """
    positions, same, nats = 0, 0, 0.0
    for text in texts:
        tokens = torch.tensor(text[1:])
        predictions = [_log_probs(model, text) for model in (one, other)]
        first, second = (log_probs.argmax(dim=-1) for log_probs in predictions)
        likely = [p.gather(1, tokens.to(p.device)[:, None]).double().sum().item() for p in predictions]
        positions += len(tokens)
        same += int((first == second).sum())
        nats += likely[0] - likely[1]
    return Agreement(positions, same / positions, nats / positions)


def _log_probs(model: TargetModel, text: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities of what follows each token but the last, `[tokens - 1, vocabulary]`."""
    model.start()
    return model.extend_all(text[:-1]).float().log_softmax(dim=-1)

"""How far two precisions of one model are the same model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from specgym.env.models.target import TargetModel


@dataclass(frozen=True)
class Agreement:
    """What one model says of texts, set against what another says."""

    positions: int  # tokens that both foretold
    same: float  # share of the positions at which both have the same likeliest token
    nats: float  # how much less likely the other makes the tokens, on average; below 0: likelier [nats]


@torch.inference_mode()
def find_agreement(one: TargetModel, other: TargetModel, texts: Sequence[tuple[int, ...]]) -> Agreement:
    """What two models say of each text after its first token, read as a whole.

    Args:
        one: the model that is set against.
        other: the model in question.
        texts: token ids, of two tokens or more each.
    """
    positions, same, nats = 0, 0, 0.0
    for text in texts:
        tokens = torch.tensor(text[1:])
        said = [_log_probs(model, text) for model in (one, other)]
        positions += len(tokens)
        same += int((said[0].argmax(dim=-1) == said[1].argmax(dim=-1)).sum())
        likely = [each.gather(1, tokens.to(each.device)[:, None]).double().sum().item() for each in said]
        nats += likely[0] - likely[1]
    return Agreement(positions, same / positions, nats / positions)


def _log_probs(model: TargetModel, text: tuple[int, ...]) -> torch.Tensor:
    model.cache.reset()
    return model.extend_all(text[:-1]).float().log_softmax(dim=-1)

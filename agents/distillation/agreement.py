"""How often a draft guesses the target's most probable token, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from agents.distillation.corpus import Lesson
from agents.distillation.rollout import rollout
from env.drafts.network import FeatureDraftNetwork

__all__ = ["Agreement", "measure_agreement"]


@dataclass(frozen=True)
class Agreement:
    """Shares of positions, by step of the draft on its own features."""

    top1: tuple[float, ...]
    """the draft's first guess is the target's most probable token"""
    top4: tuple[float, ...]
    """one of its first four is"""
    positions: int
    """positions of the first step that were compared"""


@torch.inference_mode()
def measure_agreement(
    network: FeatureDraftNetwork, embedding: nn.Embedding, lessons: Sequence[Lesson], steps: int = 5
) -> Agreement:
    """Agreement at every position of the lessons' answers.

    At step s the draft starts from the target's state s - 1 tokens before the guess and is given the tokens in between,
    as on an accepted path.

    Args:
        network: the draft.
        embedding: the target's token embedding.
        lessons: conversations that the draft was not trained on.
        steps: how many steps to look at.
    """
    device, dtype = embedding.weight.device, embedding.weight.dtype
    network = network.to(device, dtype).eval()
    hits1, hits4, seen = torch.zeros(steps), torch.zeros(steps), torch.zeros(steps)
    for lesson in lessons:
        embedded = embedding(lesson.tokens[1:].to(device))[None]
        features = lesson.features[:-1].to(device, dtype)[None]
        # Row r guesses token r + 2 of the text: the answer's tokens, without what stands before them.
        wanted = lesson.teacher_ids[1:-1, 0].to(device)
        answer = torch.arange(len(wanted), device=device) + 2 >= lesson.answer_start
        for step, output in enumerate(rollout(network, embedded, features, steps)):
            rows = answer.clone()
            rows[:step] = False
            best = network.token_ids[network.head(output[0, :-1][rows]).topk(4).indices]  # [rows, 4]
            right = best == wanted[rows][:, None]
            hits1[step] += right[:, 0].sum().cpu()
            hits4[step] += right.any(-1).sum().cpu()
            seen[step] += rows.sum().cpu()
    return Agreement(tuple((hits1 / seen).tolist()), tuple((hits4 / seen).tolist()), int(seen[0]))

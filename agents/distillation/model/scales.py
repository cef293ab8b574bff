"""How large a target's states are, layer by layer: a draft that fuses layers learns from all of them alike.

Inner layers' states may be many times as large as the last one, which a norm has passed. An optimiser's steps are about
as large for every weight: taken as they are, large states would be learned from in far larger steps than the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from specgym.agents.distillation.data.corpus import Lesson

_LESSONS = 40  # about 12,000 tokens, of which the typical one is wanted


def layer_scales(
    lessons: Sequence[Lesson], teach: Callable[[Sequence[Lesson]], Sequence[Lesson]], layers: int, hidden_size: int
) -> torch.Tensor | None:
    """By what the states that a draft fuses are divided while it learns; None if it reads the last one alone.

    That is the median over the first lessons' tokens of the states' root mean square, as the nearest power of two:
    dividing by it and folding it into weights loses nothing in any precision. The last state is left as it is.

    Args:
        lessons: what is trained on.
        teach: adds what the teacher says, where they come without.
        layers: fused layers, which stand before the last state.
        hidden_size: width of a layer's states [numbers].

    Returns:
        `float32[(layers + 1) * hidden_size]`, on the CPU.
    """
    if not layers:
        return None
    taught = teach(lessons[:_LESSONS])
    states = torch.cat([lesson.features[:, -(layers + 1) * hidden_size :].float() for lesson in taught])
    sizes = states.view(-1, layers + 1, hidden_size).square().mean(-1).sqrt().median(0).values
    # A layer that is silent has no size.
    scales = [2.0 ** round(math.log2(size)) if size else 1.0 for size in sizes[:-1].tolist()]
    return torch.tensor([*scales, 1.0]).repeat_interleave(hidden_size)

"""How often a draft guesses the target's most probable token, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from specgym.agents.distillation.data.corpus import Lesson
from specgym.agents.distillation.model.students import Student


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
def measure_agreement(student: Student, lessons: Sequence[Lesson], steps: int = 5) -> Agreement:
    """Agreement at every position of the lessons' answers, in the precision that the draft is given in.

    At step s a feature draft starts from the target's state s - 1 tokens before the guess and is given the tokens in
    between, as on an accepted path.

    Args:
        student: the draft.
        lessons: conversations that the draft was not trained on.
        steps: how many steps to look at.
    """
    hits1, hits4, seen = torch.zeros(3, steps, dtype=torch.float64)
    for lesson in lessons:
        wanted = lesson.teacher_ids[1:-1, 0]
        for step, logits in enumerate(student.guesses(lesson, steps)):
            rows = answer_rows(lesson, step)
            best = student.token_ids[logits[rows].topk(4).indices].cpu()  # [rows, 4]
            right = best == wanted[rows][:, None]
            hits1[step] += right[:, 0].sum()
            hits4[step] += right.any(-1).sum()
            seen[step] += rows.sum()
    return Agreement(tuple((hits1 / seen).tolist()), tuple((hits4 / seen).tolist()), int(seen[0]))


def agreement_at_work(student: Student, lessons: Sequence[Lesson]) -> Agreement:
    """`measure_agreement` in bfloat16, as drafts work."""
    with torch.autocast(student.token_ids.device.type, torch.bfloat16):
        return measure_agreement(student, lessons)


def answer_rows(lesson: Lesson, step: int) -> torch.Tensor:
    """Which guesses of `Student.guesses` after `step` further steps are of the answer, `bool[tokens - 2]`."""
    rows = torch.arange(len(lesson.tokens) - 2)
    return (rows + 2 >= lesson.answer_start) & (rows >= step)

"""What a trained draft is worth on prompts it has never seen: agreement, and a calibrator with its errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from specgym.agents.distillation.data.corpus import Lesson
from specgym.agents.distillation.examination.agreement import Agreement, agreement_at_work
from specgym.agents.distillation.examination.calibration import Calibration, collect
from specgym.agents.distillation.model.students import Student


@dataclass(frozen=True)
class Examination:
    """A draft's marks."""

    agreement: dict[str, Agreement]
    """on held-out answers: ``all`` of them, by the ``greedy`` or ``sampled`` way of decoding, by kind; on exams"""
    calibration: Calibration
    """a calibrator fitted on one half of the held-out prompts, and its errors on the other"""


def examine(student: Student, lessons: Sequence[Lesson], exams: dict[str, list[Lesson]]) -> Examination:
    """Examines a draft, in bfloat16 as it works.

    Args:
        student: the draft.
        lessons: conversations held out from its training. The prompts are split once more: a half to fit the
            calibrator by, a half to see how well it does.
        exams: further conversations by name, for agreement only.
    """
    half = len({lesson.prompt_hash for lesson in lessons}) // 2
    fitting = set(sorted({lesson.prompt_hash for lesson in lessons})[:half])
    fit, unseen = {}, {}
    for name, greedy in (("greedy", True), ("sampled", False)):
        own = [lesson for lesson in lessons if (lesson.temperature == 0) == greedy] or lessons
        with torch.autocast(student.token_ids.device.type, torch.bfloat16):
            fit[name] = collect(student, [lesson for lesson in own if lesson.prompt_hash in fitting], greedy)
            unseen[name] = collect(student, [lesson for lesson in own if lesson.prompt_hash not in fitting], greedy)
    return Examination(_agreement(student, lessons, exams), Calibration.fitted(fit, unseen))


def _agreement(student: Student, lessons: Sequence[Lesson], exams: dict[str, list[Lesson]]) -> dict[str, Agreement]:
    parts: dict[str, Sequence[Lesson]]
    greedy = [lesson for lesson in lessons if lesson.temperature == 0]
    parts = {"all": lessons, "greedy": greedy, "sampled": [lesson for lesson in lessons if lesson.temperature > 0]}
    for kind in dict.fromkeys(lesson.kind for lesson in greedy):
        parts[f"greedy, {kind}"] = [lesson for lesson in greedy if lesson.kind == kind]
    parts |= {f"{name} prompts, greedy": exam for name, exam in exams.items()}
    return {name: agreement_at_work(student, part) for name, part in parts.items() if part}

"""Agreement of a draft with its target, and all results of a trained draft on prompts that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from specgym.agents.distillation.data.corpus import LabelledText
from specgym.agents.distillation.examination.calibration import Calibration, collect
from specgym.agents.distillation.model.students import Student, answer_rows


@dataclass(frozen=True)
class Agreement:
    """Shares of positions, by step of the draft on its own features."""

    top1: tuple[float, ...]
    """the draft's first guess is the target's most probable token"""
    top4: tuple[float, ...]
    """one of its first four guesses is"""
    positions: int
    """positions of the first step that were compared"""


@dataclass(frozen=True)
class Examination:
    """Results of a trained draft."""

    agreement: dict[str, Agreement]
    """on held-out answers: ``all``, ``greedy``, ``sampled``, and the greedy ones by kind of task; on test prompts"""
    calibration: Calibration
    """a calibrator fitted on one half of the held-out prompts, and its errors on the other"""


@torch.inference_mode()
def measure_agreement(student: Student, texts: Sequence[LabelledText], steps: int = 5) -> Agreement:
    """Measures agreement at every position of the texts' answers, in the draft's own precision.

    At step s a feature draft starts from the target's state s - 1 tokens before the guess and reads the tokens in
    between, as on an accepted path.

    Args:
        student: the draft.
        texts: texts that the draft was not trained on.
        steps: number of steps.
    """
    hits1, hits4, positions = torch.zeros(3, steps, dtype=torch.float64)
    for text in texts:
        target = text.teacher_ids[1:-1, 0]
        for step, logits in enumerate(student.guesses(text, steps)):
            rows = answer_rows(text, step)
            best = student.token_ids[logits[rows].topk(4).indices].cpu()  # [rows, 4]
            right = best == target[rows][:, None]
            hits1[step] += right[:, 0].sum()
            hits4[step] += right.any(-1).sum()
            positions[step] += rows.sum()
    return Agreement(tuple((hits1 / positions).tolist()), tuple((hits4 / positions).tolist()), int(positions[0]))


def bfloat16_agreement(student: Student, texts: Sequence[LabelledText]) -> Agreement:
    """Measures agreement in bfloat16, the precision of decoding."""
    with torch.autocast(student.token_ids.device.type, torch.bfloat16):
        return measure_agreement(student, texts)


def examine(student: Student, texts: Sequence[LabelledText], test_texts: dict[str, list[LabelledText]]) -> Examination:
    """Measures a draft's agreement and fits its calibrator, in bfloat16 as in decoding.

    Args:
        student: the draft.
        texts: texts held out from its training. Half of their prompts fit the calibrator, the other half measure it.
        test_texts: further texts by the name of their prompts, for agreement only.
    """
    prompts = sorted({text.prompt_hash for text in texts})
    fitting = set(prompts[: len(prompts) // 2])
    greedy_texts = [text for text in texts if text.temperature == 0]
    parts = {"all": texts, "greedy": greedy_texts, "sampled": [text for text in texts if text.temperature > 0]}
    fit, unseen = {}, {}
    with torch.autocast(student.token_ids.device.type, torch.bfloat16):
        for mode in ("greedy", "sampled"):
            chosen, greedy = parts[mode] or texts, mode == "greedy"
            fit[mode] = collect(student, [text for text in chosen if text.prompt_hash in fitting], greedy)
            unseen[mode] = collect(student, [text for text in chosen if text.prompt_hash not in fitting], greedy)
    for kind in dict.fromkeys(text.kind for text in greedy_texts):
        parts[f"greedy, {kind}"] = [text for text in greedy_texts if text.kind == kind]
    parts |= {f"{name} prompts, greedy": part for name, part in test_texts.items()}
    agreement = {name: bfloat16_agreement(student, part) for name, part in parts.items() if part}
    return Examination(agreement, Calibration.fitted(fit, unseen))

"""Fitting a draft's calibrator on held-out text, and showing how well it does.

An example is a child of a node that the target reaches: the draft's probability of it, its rank, its depth, by how much
the first child leads the second, and whether the target chooses it. Below depth 1 only those positions count at which
the tokens before were among the draft's candidates, because only such nodes are ever in a tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import minimize
from scipy.special import expit

from specgym.agents.distillation.data.corpus import Lesson
from specgym.agents.distillation.examination.agreement import answer_rows
from specgym.agents.distillation.model.students import Student
from specgym.env.common.arrays import BoolArray, FloatArray, IntArray
from specgym.env.common.files import atomic_path
from specgym.env.drafts.calibrator import CalibrationMap, Calibrator, margins

RANKS = 4
"""children of a node that are looked at: as many as the widest branching of the rules"""
DEPTHS = 8
"""depths that are looked at"""
_BINS = 10
_DRAWN = (1, 2, 4, 8)  # depths in the diagram
_RIDGE = 1e-3  # keeps coefficients of rare ranks and depths near those of their neighbours


@dataclass(frozen=True)
class Examples:
    """What was seen at nodes that the target reached."""

    log_probs: FloatArray
    """the draft's log-probabilities of the children, best first, `float64[nodes, RANKS]`"""
    depth: IntArray
    """of the children, `int64[nodes]`"""
    accepted: BoolArray
    """whether each child is the target's choice, `bool[nodes, RANKS]`"""

    def at(self, depth: int) -> Examples:
        """Those of one depth."""
        here = self.depth == depth
        return Examples(self.log_probs[here], self.depth[here], self.accepted[here])


@torch.inference_mode()
def collect(student: Student, lessons: Sequence[Lesson], greedy: bool, seed: int = 0) -> Examples:
    """Examples from the answers of lessons.

    When sampling, draft and target share their noise, as at work: it is drawn so that it leads the target to the
    text's own tokens, and ranks the draft's candidates. Positions whose token the teacher's cache does not hold, about
    one in a hundred, are left out.

    Args:
        student: the draft.
        lessons: conversations that the draft was not trained on, decoded at the temperature in question.
        greedy: whether the target decodes greedily.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[tuple[FloatArray, IntArray, BoolArray]] = []
    for lesson in lessons:
        size = int(max(student.token_ids.max(), lesson.teacher_ids.max())) + 1
        noise, known = (None, torch.tensor(True)) if greedy else _leading_noise(lesson, size, generator)
        choice = lesson.teacher_ids[1:-1, 0].long() if greedy else lesson.tokens[2:]
        reached = torch.ones(len(choice), dtype=torch.bool)
        for step, logits in enumerate(student.guesses(lesson, DEPTHS)):
            tokens, log_probs = _candidates(student, logits, noise)
            rows = answer_rows(lesson, step) & reached & known
            accepted = tokens[rows] == choice[rows, None]
            depth = np.full(len(accepted), step + 1)
            parts.append((log_probs[rows].double().numpy(), depth, accepted.numpy()))
            # The next row goes on from this one if the text's token is among the candidates.
            reached = (reached & (tokens == lesson.tokens[2:, None]).any(-1)).roll(1)
            reached[0] = False
    return Examples(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _leading_noise(lesson: Lesson, vocabulary: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Gumbel noise under which the teacher's choice is the text's own token, `float32[tokens - 2, vocabulary]`.

    Drawn top-down (Maddison, Tarlow and Minka 2014, "A* Sampling"): first the largest perturbed value, then all others
    below it. Tokens outside the teacher's cache get free noise; they are too improbable to lead.

    Also tells which rows' tokens the cache holds, `bool[tokens - 2]`.
    """
    ids, log_probs = lesson.teacher_ids[1:-1].long(), lesson.teacher_log_probs[1:-1].float()
    noise = -torch.empty(len(ids), vocabulary).exponential_(generator=generator).log_()
    largest = -torch.empty(len(ids), 1).exponential_(generator=generator).log_()
    below = -torch.logaddexp(-largest, -(log_probs + noise.gather(1, ids)))
    own = ids == lesson.tokens[2:, None]
    noise.scatter_(1, ids, torch.where(own, largest, below) - log_probs)
    return noise, own.any(-1)


def _candidates(
    student: Student, logits: torch.Tensor, noise: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The draft's candidates, best first, and their log-probabilities, both `[rows, RANKS]`."""
    scores, token_ids = logits.float().cpu(), student.token_ids.cpu()
    if noise is not None:
        scores = scores + noise[:, token_ids]
    best, indices = scores.log_softmax(-1).topk(RANKS)
    return token_ids[indices], best


def fit_map(examples: Examples) -> CalibrationMap:
    """The map of least cross-entropy, found with L-BFGS-B; slopes are held at 0 or above."""
    log_p = np.clip(examples.log_probs, np.log(1e-6), np.log1p(-1e-6))
    features = np.stack([log_p, -np.log1p(-np.exp(log_p)), np.broadcast_to(margins(log_p)[:, None], log_p.shape)])
    depth = np.minimum(examples.depth, DEPTHS) - 1
    accepted = examples.accepted.astype(np.float64)
    start = np.concatenate([np.ones(RANKS), np.ones(RANKS), np.zeros(RANKS), np.zeros(DEPTHS * RANKS)])

    def loss(values: FloatArray) -> tuple[float, FloatArray]:
        slopes, offset = values[: 3 * RANKS].reshape(3, RANKS), values[3 * RANKS :].reshape(DEPTHS, RANKS)
        logits = np.einsum("fnr,fr->nr", features, slopes) + offset[depth]
        residual = expit(logits) - accepted
        rough = np.diff(offset, axis=0, prepend=0)  # neighbouring depths are alike
        value = (np.logaddexp(0, logits) - accepted * logits).sum() / len(depth) + _RIDGE * (rough**2).sum()
        by_slope = np.einsum("fnr,nr->fr", features, residual) / len(depth)
        by_offset = np.zeros_like(offset)
        np.add.at(by_offset, depth, residual / len(depth))
        by_offset += 2 * _RIDGE * (rough - np.append(rough[1:], np.zeros((1, RANKS)), axis=0))
        return float(value), np.concatenate([by_slope.ravel(), by_offset.ravel()])

    free = (None, None)
    bounds = [(0, None)] * (2 * RANKS) + [free] * (RANKS + DEPTHS * RANKS)
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500}).x
    low, high, margin = best[: 3 * RANKS].reshape(3, RANKS)
    return CalibrationMap(low, high, margin, best[3 * RANKS :].reshape(DEPTHS, RANKS))


@dataclass(frozen=True)
class DepthError:
    """How well probabilities of children at one depth are calibrated."""

    depth: int
    """of the children"""
    children: int
    """examples"""
    first: float
    """share of the first children that the target chooses"""
    raw: float
    """expected calibration error of the draft's own probabilities"""
    calibrated: float
    """the same after calibration"""


def depth_errors(examples: Examples, fitted: CalibrationMap) -> list[DepthError]:
    """Calibration errors by depth, on examples that `fitted` has not seen."""
    errors = []
    for depth in range(1, DEPTHS + 1):
        here = examples.at(depth)
        if not len(here.depth):
            continue
        raw, calibrated = np.exp(here.log_probs), np.exp(fitted.calibrate(here.log_probs, depth))
        errors.append(
            DepthError(
                depth,
                here.accepted.size,
                float(here.accepted[:, 0].mean()),
                expected_calibration_error(raw, here.accepted),
                expected_calibration_error(calibrated, here.accepted),
            )
        )
    return errors


def expected_calibration_error(probabilities: FloatArray, accepted: BoolArray, bins: int = _BINS) -> float:
    """Mean distance of predicted from observed shares over equally wide bins, weighted by their examples.

    After Naeini, Cooper and Hauskrecht 2015.

    Args:
        probabilities: predictions, any shape.
        accepted: what came, of the same shape.
        bins: how many.
    """
    if not probabilities.size:
        return 0.0
    place = np.minimum((probabilities * bins).astype(np.int64), bins - 1).ravel()
    gaps = np.bincount(place, (probabilities - accepted).ravel(), bins)
    return float(np.abs(gaps).sum() / place.size)


@dataclass(frozen=True)
class Calibration:
    """A calibrator and how well it does."""

    calibrator: Calibrator
    """fitted on some examples"""
    errors: dict[str, list[DepthError]]
    """its errors on others, by depth, for ``greedy`` and ``sampled``"""
    unseen: dict[str, Examples]
    """those others, for the diagram"""

    @classmethod
    def fitted(cls, fitting: dict[str, Examples], unseen: dict[str, Examples]) -> Calibration:
        """Fits on `fitting` and judges on `unseen`, both with the keys ``greedy`` and ``sampled``."""
        maps = {name: fit_map(examples) for name, examples in fitting.items()}
        errors = {name: depth_errors(examples, maps[name]) for name, examples in unseen.items()}
        return cls(Calibrator(maps["greedy"], maps["sampled"]), errors, unseen)

    def draw(self, path: Path) -> None:
        """Draws the reliability diagram. Raises `FileWriteError`."""
        maps = {"greedy": self.calibrator.greedy, "sampled": self.calibrator.sampled}
        draw_reliability(path, {name: (examples, maps[name]) for name, examples in self.unseen.items()})


def draw_reliability(path: Path, examples: dict[str, tuple[Examples, CalibrationMap]]) -> None:
    """Draws predicted against observed shares, before and after calibration, one row of panels a way of decoding.

    Args:
        path: the picture, PNG.
        examples: by the name of the way, examples that its map has not seen, and the map.

    Raises:
        FileWriteError: see `atomic_path`.
    """
    figure = Figure(figsize=(8, 4 * len(examples)), layout="constrained")
    panels = figure.subplots(len(examples), 2, sharex=True, sharey=True, squeeze=False)
    for row, (name, (seen, fitted)) in zip(panels, examples.items(), strict=True):
        for axes, title in zip(row, ("the draft's own", "calibrated"), strict=True):
            axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
            axes.set(title=f"{name}, {title}", xlabel="predicted probability", ylabel="share chosen by the target")
            axes.grid(alpha=0.3)
        for depth in _DRAWN:
            here = seen.at(depth)
            for axes, log_probs in zip(row, (here.log_probs, fitted.calibrate(here.log_probs, depth)), strict=True):
                axes.plot(*_reliability(np.exp(log_probs), here.accepted), marker="o", label=f"depth {depth}")
        row[0].legend()
    with atomic_path(path) as temporary, mpl.rc_context({"savefig.dpi": 110}):
        figure.savefig(temporary, format="png")


def _reliability(probabilities: FloatArray, accepted: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Mean prediction and observed share of every bin that has examples."""
    place = np.minimum((probabilities * _BINS).astype(np.int64), _BINS - 1).ravel()
    counts = np.bincount(place, minlength=_BINS)
    filled = counts > 0
    predicted = np.bincount(place, probabilities.ravel(), _BINS)[filled] / counts[filled]
    return predicted, np.bincount(place, accepted.ravel(), _BINS)[filled] / counts[filled]

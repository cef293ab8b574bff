"""Fits a draft's calibrator on held-out text and measures its errors.

An example is a child of a node that the target reaches. It has the draft's probability, its rank and depth, the lead of
the first child over the second, and whether the target chooses it. Below depth 1 only those positions count whose
previous tokens were among the draft's candidates, because only such nodes occur in a tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit

from specgym.agents.distillation.data.corpus import LabelledText
from specgym.agents.distillation.model.students import Student, answer_rows
from specgym.controllers.evaluation.results.figures import GREY, new_figure, save_figure
from specgym.env.common.arrays import BoolArray, FloatArray, IntArray
from specgym.env.common.errors import TraceError
from specgym.env.drafts.calibrator import CalibrationMap, Calibrator, margins
from specgym.env.replay.sources import playable
from specgym.env.replay.traces.file import Trace
from specgym.env.replay.traces.records import TraceHeader, TraceText

RANKS = 4
"""children of a node that count: as many as the widest branching of the rules"""
DEPTHS = 8
"""depths that count"""
_BINS = 10
_DRAWN_DEPTHS = (1, 2, 4, 8)
_RIDGE = 1e-3  # keeps coefficients of rare ranks and depths near their neighbours


@dataclass(frozen=True)
class Examples:
    """Children of nodes that the target reached."""

    log_probs: FloatArray
    """the draft's log-probabilities of the children, best first, `float64[nodes, RANKS]`"""
    depth: IntArray
    """depth of the children, `int64[nodes]`"""
    accepted: BoolArray
    """whether each child is the target's choice, `bool[nodes, RANKS]`"""

    def at(self, depth: int) -> Examples:
        """Returns the examples of one depth."""
        rows = self.depth == depth
        return Examples(self.log_probs[rows], self.depth[rows], self.accepted[rows])


@torch.inference_mode()
def collect(student: Student, texts: Sequence[LabelledText], greedy: bool, seed: int = 0) -> Examples:
    """Collects examples from the answers of texts.

    When sampling, draft and target share their noise, as in decoding. The noise is drawn so that the target chooses the
    text's own tokens, and it ranks the draft's candidates. A position is left out if its token is not among the
    teacher's most probable ones: about one in a hundred.

    Args:
        student: the draft.
        texts: texts that the draft was not trained on, all greedy or all sampled.
        greedy: whether the target decodes greedily.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[tuple[FloatArray, IntArray, BoolArray]] = []
    for text in texts:
        size = int(max(student.token_ids.max(), text.teacher_ids.max())) + 1
        noise, known = (None, torch.tensor(True)) if greedy else _shared_noise(text, size, generator)
        choice = text.teacher_ids[1:-1, 0].long() if greedy else text.tokens[2:]
        reached = torch.ones(len(choice), dtype=torch.bool)
        for step, logits in enumerate(student.guesses(text, DEPTHS)):
            tokens, log_probs = _candidates(student, logits, noise)
            rows = answer_rows(text, step) & reached & known
            accepted = tokens[rows] == choice[rows, None]
            depth = np.full(len(accepted), step + 1)
            parts.append((log_probs[rows].double().numpy(), depth, accepted.numpy()))
            # The next row continues this one if the text's token is among the candidates.
            reached = (reached & (tokens == text.tokens[2:, None]).any(-1)).roll(1)
            reached[0] = False
    return Examples(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _shared_noise(text: LabelledText, vocabulary: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws Gumbel noise under which the teacher chooses the text's own token.

    It is drawn top-down (Maddison, Tarlow and Minka 2014, "A* Sampling"): first the largest perturbed value, then all
    others below it. Tokens that are not among the teacher's labels get free noise: they are too improbable to win.

    Returns:
        The noise, `float32[tokens - 2, vocabulary]`, and which rows' tokens are among the labels, `bool[tokens - 2]`.
    """
    ids, log_probs = text.teacher_ids[1:-1].long(), text.teacher_log_probs[1:-1].float()
    noise = -torch.empty(len(ids), vocabulary).exponential_(generator=generator).log_()
    largest = -torch.empty(len(ids), 1).exponential_(generator=generator).log_()
    below = -torch.logaddexp(-largest, -(log_probs + noise.gather(1, ids)))
    own = ids == text.tokens[2:, None]
    noise.scatter_(1, ids, torch.where(own, largest, below) - log_probs)
    return noise, own.any(-1)


def _candidates(
    student: Student, logits: torch.Tensor, noise: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the draft's candidates, best first, and their log-probabilities, both `[rows, RANKS]`."""
    scores, token_ids = logits.float().cpu(), student.token_ids.cpu()
    if noise is not None:
        scores = scores + noise[:, token_ids]
    best, indices = scores.log_softmax(-1).topk(RANKS)
    return token_ids[indices], best


def fit_map(examples: Examples) -> CalibrationMap:
    """Fits the map of least cross-entropy with L-BFGS-B; slopes stay at 0 or above."""
    log_p = np.clip(examples.log_probs, np.log(1e-6), np.log1p(-1e-6))
    probabilities = np.exp(log_p)
    margin = np.broadcast_to(margins(probabilities)[:, None], log_p.shape)
    features = np.stack([log_p, -np.log1p(-probabilities), margin])  # [3, nodes, RANKS]
    at_depth = np.eye(DEPTHS)[np.minimum(examples.depth, DEPTHS) - 1]  # [nodes, DEPTHS]
    accepted, count = examples.accepted.astype(np.float64), len(examples.depth)

    def loss(values: FloatArray) -> tuple[float, FloatArray]:
        slopes, offset = np.split(values.reshape(-1, RANKS), [3])
        logits = np.einsum("fnr,fr->nr", features, slopes) + at_depth @ offset
        residual = (expit(logits) - accepted) / count
        rough = np.diff(offset, axis=0, prepend=0)  # neighbouring depths are alike
        value = (np.logaddexp(0, logits) - accepted * logits).sum() / count + _RIDGE * (rough**2).sum()
        by_slope = np.einsum("fnr,nr->fr", features, residual)
        by_offset = at_depth.T @ residual - 2 * _RIDGE * np.diff(rough, axis=0, append=0)
        return float(value), np.concatenate([by_slope, by_offset]).ravel()

    start = np.repeat([1.0, 0.0], [2 * RANKS, (1 + DEPTHS) * RANKS])
    bounds = [(0, None)] * (2 * RANKS) + [(None, None)] * ((1 + DEPTHS) * RANKS)
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500}).x
    low, high, margin, *offsets = best.reshape(-1, RANKS)
    return CalibrationMap(low, high, margin, np.array(offsets))


@dataclass(frozen=True)
class DepthError:
    """Calibration error of children at one depth."""

    depth: int
    """depth of the children"""
    children: int
    """number of examples"""
    first: float
    """share of the first children that the target chooses"""
    raw: float
    """expected calibration error of the draft's own probabilities"""
    calibrated: float
    """expected calibration error of the calibrated probabilities"""


def depth_errors(examples: Examples, fitted: CalibrationMap) -> list[DepthError]:
    """Measures calibration errors by depth, on examples that `fitted` has not seen."""
    errors = []
    for depth in np.unique(examples.depth).tolist():
        part = examples.at(depth)
        own, calibrated = (np.exp(values) for values in (part.log_probs, fitted.calibrate(part.log_probs, depth)))
        shares = (expected_calibration_error(predicted, part.accepted) for predicted in (own, calibrated))
        errors.append(DepthError(depth, part.accepted.size, float(part.accepted[:, 0].mean()), *shares))
    return errors


def expected_calibration_error(probabilities: FloatArray, accepted: BoolArray) -> float:
    """Returns the mean distance of predicted from observed shares over equally wide bins, weighted by their examples.

    See Naeini, Cooper and Hauskrecht 2015.

    Args:
        probabilities: predictions, of any shape.
        accepted: outcomes, of the same shape.
    """
    _, predicted, observed = _bin_sums(probabilities, accepted)
    return float(np.abs(predicted - observed).sum() / max(probabilities.size, 1))


def _bin_sums(probabilities: FloatArray, accepted: BoolArray) -> FloatArray:
    """Returns examples, sum of the predictions and accepted examples of each bin that has any, `float64[3, bins]`."""
    bins = np.minimum((probabilities * _BINS).astype(np.int64), _BINS - 1).ravel()
    columns = (np.ones(bins.size), probabilities.ravel(), accepted.ravel())
    sums = np.array([np.bincount(bins, column, _BINS) for column in columns])
    return sums[:, sums[0] > 0]


@dataclass(frozen=True)
class Calibration:
    """A calibrator and its errors."""

    calibrator: Calibrator
    """fitted on some examples"""
    errors: dict[str, list[DepthError]]
    """its errors on other examples, by depth, for ``greedy`` and ``sampled``"""
    unseen: dict[str, Examples]
    """the other examples, for the diagram"""

    @classmethod
    def fitted(cls, fitting: dict[str, Examples], unseen: dict[str, Examples]) -> Calibration:
        """Fits on `fitting` and measures on `unseen`, both with the keys ``greedy`` and ``sampled``."""
        maps = {mode: fit_map(examples) for mode, examples in fitting.items()}
        errors = {mode: depth_errors(examples, maps[mode]) for mode, examples in unseen.items()}
        return cls(Calibrator(**maps), errors, unseen)

    def draw(self, path: Path) -> None:
        """Draws predicted against observed shares, before and after calibration. Raises `FileWriteError`."""
        size, shape = (8, 4 * len(self.unseen) + 0.4), (len(self.unseen), 2)
        figure, panels = new_figure("Predicted against observed shares", size, shape, sharex=True, sharey=True)
        for row, (mode, unseen) in zip(panels, self.unseen.items(), strict=True):
            for axes, title in zip(row, ("the draft's own", "calibrated"), strict=True):
                axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
                axes.set(title=f"{mode}, {title}", xlabel="predicted probability", ylabel="share chosen by the target")
            for depth in _DRAWN_DEPTHS:
                part = unseen.at(depth)
                calibrated = getattr(self.calibrator, mode).calibrate(part.log_probs, depth)
                for axes, log_probs in zip(row, (part.log_probs, calibrated), strict=True):
                    counts, predicted, observed = _bin_sums(np.exp(log_probs), part.accepted)
                    axes.plot(predicted / counts, observed / counts, marker="o", label=f"depth {depth}")
            row[0].legend()
        save_figure(figure, path)


def fit_on_trace(trace: Trace) -> Calibration:
    """Fits a calibrator on the train and validation splits and measures its errors on the test split.

    Raises:
        TraceError: greedy or sampled texts are missing on either side.
    """
    parts = [
        {mode: trace_examples(_chosen(trace, mode, unseen), trace.header) for mode in ("greedy", "sampled")}
        for unseen in (False, True)
    ]
    return Calibration.fitted(*parts)


def trace_examples(texts: Sequence[TraceText], header: TraceHeader) -> Examples:
    """Reads the examples at nodes that the target reached, up to depth `DEPTHS`.

    A feature draft's guesses after a branch depend on its own features, and are recorded only after likely branches.
    A causal draft guesses the same after a branch as after a text with the same tokens, and a trace holds its guesses
    at every position of the text.
    """
    parts = (part for text in texts for part in _examples(text, header.draft_kind == "causal"))
    return Examples(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _examples(text: TraceText, causal: bool) -> Iterator[tuple[FloatArray, IntArray, BoolArray]]:
    """Yields one text's examples, depth by depth along the target's choices."""
    table, tokens = text.guesses, np.array(text.tokens)
    rows = np.flatnonzero((table.parent < 0) & (table.position < len(tokens) - 1))
    root_at = np.full(len(tokens), -1)
    root_at[table.position[rows]] = rows
    following = table.position[rows] + 1  # index of the token that the target chose below each node
    for depth in range(1, DEPTHS + 1):
        known = following < len(tokens)
        rows, following = rows[known], following[known]
        accepted = table.tokens[rows] == tokens[following][:, None]
        ranks = slice(RANKS)
        yield table.log_probs[rows, ranks], np.full(len(rows), depth), accepted[:, ranks]
        nodes = root_at[following] if causal else table.child[rows, accepted.argmax(1)]
        below = np.where(accepted.any(1), nodes, -1)
        rows, following = below[below >= 0], following[below >= 0] + 1


def _chosen(trace: Trace, mode: str, unseen: bool) -> list[TraceText]:
    """Returns the texts of one mode of decoding, in or outside the test split. Raises `TraceError` without any."""
    texts = [text for text in playable(trace.texts) if (text.split == "test") == unseen]
    chosen = [text for text in texts if (text.settings.temperature == 0) == (mode == "greedy")]
    if not chosen:
        raise TraceError(
            f"Expected {mode} texts in the {'test split' if unseen else 'other splits'} "
            "of the trace, to calibrate by; it has none. Record some with `specgym record`."
        )
    return chosen

"""Fits latency profiles: from single measurements to curves that never fall.

Noise aside, more rows and a longer context never make a forward cheaper. So the medians of the cells are fitted by the
closest table that rises along both axes. This two-way isotonic regression uses the algorithm of Dykstra and Robertson
(1982), which alternates between rows and contexts until the fit no longer changes. The fit is in the logarithm, so a
level of 3 ms is fitted as well as a verification of 300 ms.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import isotonic_regression

from specgym.env.common.arrays import FloatArray
from specgym.env.latency.costs import CURVES, Curve, RoundCosts
from specgym.env.latency.latency_profile import LatencyProfile, Point, ProfileError

_SHORTEST = 1e-9  # shortest time, so that it has a logarithm [s]
_GUESS = 1e-3  # weight of an unmeasured cell, in measurements


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement."""

    greedy: bool
    """whether tokens were chosen greedily"""
    stage: str
    """see `Point`"""
    bucket: int
    """context of the grid that the measurement belongs to [tokens]"""
    context: int
    """position of the root [tokens]"""
    rows: int
    """rows of the forward; 1 in stages without rows"""
    seconds: float
    """time [s]"""


def at_one_speed(visits: Sequence[Sequence[Sample]]) -> list[Sample]:
    """Returns all samples, scaled as if the machine had been equally fast in all visits.

    A shared machine can be a tenth faster or slower for minutes, and a cell is measured only a few times. So times of a
    visit are divided by its slowness: the median of its plain steps, over the median in all visits of its kind.

    Args:
        visits: samples that were taken in a row, at one context and in one mode.
    """
    plain: dict[tuple[bool, int], list[float]] = defaultdict(list)
    for sample in itertools.chain(*visits):
        if sample.stage == "plain":
            plain[sample.greedy, sample.bucket].append(sample.seconds)
    usual = {kind: float(np.median(seconds)) for kind, seconds in plain.items()}
    scaled: list[Sample] = []
    for visit in visits:
        ratios = [sample.seconds / usual[sample.greedy, sample.bucket] for sample in visit if sample.stage == "plain"]
        slowness = float(np.median(ratios)) if ratios else 1.0
        scaled += [replace(sample, seconds=sample.seconds / slowness) for sample in visit]
    return scaled


def summarise(samples: Iterable[Sample], greedy: bool) -> list[Point]:
    """Returns the medians of one mode's cells, ordered by stage, context and rows.

    A cell's context is the median over its bucket, so all cells of a bucket have the same context.
    """
    contexts: dict[int, list[int]] = defaultdict(list)
    cells: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    for sample in samples:
        if sample.greedy == greedy:
            contexts[sample.bucket].append(sample.context)
            cells[sample.stage, sample.bucket, sample.rows].append(sample.seconds)
    middles = {bucket: int(np.median(positions)) for bucket, positions in contexts.items()}
    return [
        Point(greedy, stage, middles[bucket], rows, float(np.median(cell)), len(cell))
        for (stage, bucket, rows), cell in sorted(cells.items())
    ]


Knots = Mapping[str, Sequence[int]]
"""rows at which the curves ``root``, ``level`` and ``verify`` are fitted, ascending; other rows are left out. A pair
without a draft model has no knots of ``root`` and ``level``, which cost it nothing"""


def fit_profile(samples: Sequence[Sample], knots: Knots, origin: dict[str, object]) -> LatencyProfile:
    """Fits the costs of both modes and keeps the points. Raises the errors of `fit_costs`."""
    greedy, sampled = summarise(samples, True), summarise(samples, False)
    return LatencyProfile(fit_costs(greedy, knots), fit_costs(sampled, knots), origin, (*greedy, *sampled))


def fit_costs(points: Sequence[Point], knots: Knots) -> RoundCosts:
    """Fits the costs of one mode.

    Args:
        points: the medians, from `summarise`.
        knots: rows at which the curves are fitted.

    Raises:
        ProfileError: a stage was not measured, or not at every context.
    """
    contexts = tuple(sorted({point.context for point in points if point.stage == "plain"}))
    curves = {stage: _fit_curve(points, stage, contexts, rows) for stage, rows in {"plain": (1,), **knots}.items()}
    root_row = _root_row(points, curves["root"]) if knots["root"] else 0.0
    overhead, lookup = _median(points, "overhead"), _median(points, "lookup")
    return RoundCosts(contexts, **curves, root_row=root_row, overhead=overhead, lookup=lookup)


def monotone(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Returns the weighted least-squares fit that never falls along either axis.

    Args:
        values: `float64[contexts, knots]`.
        weights: weight of each value, positive, `float64[contexts, knots]`.
    """
    fitted, corrections = values.copy(), [np.zeros_like(values), np.zeros_like(values)]
    for _ in range(500):
        before = fitted
        for axis in (0, 1):
            corrected = fitted + corrections[axis]
            fitted = _isotonic(corrected, weights, axis)
            corrections[axis] = corrected - fitted
        if np.abs(fitted - before).max() < 1e-9:
            break
    # The iteration ends slightly before the fit, so make it rise exactly.
    return np.maximum.accumulate(np.maximum.accumulate(fitted, axis=0), axis=1)


def _isotonic(values: FloatArray, weights: FloatArray, axis: int) -> FloatArray:
    lines = zip(np.moveaxis(values, axis, -1), np.moveaxis(weights, axis, -1), strict=True)
    fitted = np.stack([isotonic_regression(line, weights=weight).x for line, weight in lines])
    return np.moveaxis(fitted, -1, axis)


def _fit_curve(points: Sequence[Point], stage: str, contexts: tuple[int, ...], knots: Sequence[int]) -> Curve:
    """Fits the curve of a stage over the knots that were measured at any context."""
    if not knots:
        return Curve(CURVES[stage], (1,), ((0.0,),) * len(contexts))
    cells = {(point.context, point.rows): point for point in points if point.stage == stage and point.rows in knots}
    rows = sorted({rows for _, rows in cells})
    if missing := [context for context in contexts if not any((context, row) in cells for row in rows)]:
        raise ProfileError(f"No {stage} was measured near context {missing}. Give more minutes, or other contexts.")
    values, weights = np.full((len(contexts), len(rows)), np.nan), np.full((len(contexts), len(rows)), _GUESS)
    for (context, row), point in cells.items():
        place = contexts.index(context), rows.index(row)
        values[place], weights[place] = np.log(max(point.seconds, _SHORTEST)), point.count
    for line in values:  # an unmeasured cell has almost no weight, but the fit needs a number
        known = ~np.isnan(line)
        line[~known] = np.interp(np.flatnonzero(~known), np.flatnonzero(known), line[known])
    fitted = np.exp(monotone(values, weights))
    return Curve(CURVES[stage], tuple(rows), tuple(map(tuple, fitted.tolist())))


def _median(points: Sequence[Point], stage: str) -> float:
    """The time of a stage that depends on neither rows nor context: the median over cells, weighted by measurements."""
    cells = [point for point in points if point.stage == stage]
    if not cells:
        raise ProfileError(f"No {stage} was measured. Give more minutes.")
    return float(np.median(np.repeat([cell.seconds for cell in cells], [cell.count for cell in cells])))


def _root_row(points: Sequence[Point], root: Curve) -> float:
    """The cost of an owed token past the root's last knot, from forwards in which the draft reads a whole prompt."""
    known = np.median([line[-1] for line in root.seconds])
    prompts = [point for point in points if point.stage == "prompt" and point.rows > root.most]
    if not prompts:
        raise ProfileError(f"No prompt of more than {root.most} tokens was read. Give longer contexts.")
    return max(float(np.median([(point.seconds - known) / (point.rows - root.most) for point in prompts])), 0.0)

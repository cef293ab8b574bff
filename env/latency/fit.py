"""From single measurements to curves that never fall.

More rows and a longer context never make a forward cheaper, noise aside. The medians of the cells are fitted by the
closest table, in the logarithm, that rises along both: a two-way isotonic regression, found with the algorithm of
Dykstra and Robertson (1982), which takes turns between rows and contexts until nothing moves. Relative errors count,
so that a level of 3 ms is fitted as well as a verification of 300 ms.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import isotonic_regression

from specgym.env.common.arrays import FloatArray
from specgym.env.latency.costs import RoundCosts
from specgym.env.latency.curve import Curve
from specgym.env.latency.latency_profile import LatencyProfile, Point, ProfileError

_SHORTEST = 1e-9  # of a time, so that it has a logarithm [s]
_GUESS = 1e-3  # weight of a cell that nobody measured against one measurement


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement."""

    greedy: bool
    """whether tokens were chosen greedily"""
    stage: str
    """as in `Point`"""
    bucket: int
    """which of the contexts it was taken at, for grouping [tokens]"""
    context: int
    """position of the root [tokens]"""
    rows: int
    """rows of the forward; 1 where there are none to count"""
    seconds: float
    """time [s]"""


def at_one_speed(visits: Sequence[Sequence[Sample]]) -> list[Sample]:
    """The samples of all visits, as if the machine had been equally fast in all of them.

    A shared machine is a tenth faster or slower for minutes on end, and a cell is measured only a few times. Times of
    a visit are divided by how much slower its plain steps were, in the median, than those of all visits of its kind.

    Args:
        visits: samples that were taken in a row at one context, greedily or not.
    """
    plain: dict[tuple[bool, int], list[float]] = defaultdict(list)
    for sample in itertools.chain(*visits):
        if sample.stage == "plain":
            plain[sample.greedy, sample.bucket].append(sample.seconds)
    usual = {kind: float(np.median(seconds)) for kind, seconds in plain.items()}
    made: list[Sample] = []
    for visit in visits:
        own = [sample.seconds / usual[sample.greedy, sample.bucket] for sample in visit if sample.stage == "plain"]
        slower = float(np.median(own)) if own else 1.0
        made += [replace(sample, seconds=sample.seconds / slower) for sample in visit]
    return made


def summarise(samples: Iterable[Sample], greedy: bool) -> list[Point]:
    """The medians of the cells of one way of decoding, in the order of stage, context and rows.

    A cell's context is the median of all measurements of its bucket, so that the cells of a bucket stand at one.
    """
    chosen = [sample for sample in samples if sample.greedy == greedy]
    contexts: dict[int, list[int]] = defaultdict(list)
    cells: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    for sample in chosen:
        contexts[sample.bucket].append(sample.context)
        cells[sample.stage, sample.bucket, sample.rows].append(sample.seconds)
    middles = {bucket: int(np.median(found)) for bucket, found in contexts.items()}
    return [
        Point(greedy, stage, middles[bucket], rows, float(np.median(cell)), len(cell))
        for (stage, bucket, rows), cell in sorted(cells.items())
    ]


@dataclass(frozen=True)
class Knots:
    """The rows at which curves are fitted, ascending. What was measured at others is left out.

    A pair without a draft model has none of the first two: levels cost it nothing, and are known for one row only.
    """

    owed: tuple[int, ...]
    """of the draft's first level [rows]"""
    expanded: tuple[int, ...]
    """of the further levels [rows]"""
    verified: tuple[int, ...]
    """of the verification [rows]"""


def fit_profile(samples: Sequence[Sample], knots: Knots, origin: dict[str, object]) -> LatencyProfile:
    """Fits both ways of decoding and keeps the points. Raises as `fit_costs` does."""
    points = {greedy: summarise(samples, greedy) for greedy in (True, False)}
    costs = {greedy: fit_costs(found, knots) for greedy, found in points.items()}
    return LatencyProfile(costs[True], costs[False], origin, (*points[True], *points[False]))


def fit_costs(points: Sequence[Point], knots: Knots) -> RoundCosts:
    """Fits the costs of one way of decoding.

    Args:
        points: the medians, from `summarise`.
        knots: where.

    Raises:
        ProfileError: a stage was not measured, or not at every context.
    """
    contexts = tuple(sorted({point.context for point in points if point.stage == "plain"}))
    root = _fit_curve(points, "root", "owed tokens", contexts, knots.owed)
    return RoundCosts(
        contexts=contexts,
        plain=_fit_curve(points, "plain", "plain steps", contexts, (1,)),
        root=root,
        level=_fit_curve(points, "level", "expanded nodes", contexts, knots.expanded),
        verify=_fit_curve(points, "verify", "verified rows", contexts, knots.verified),
        root_row=_row_price(points, root) if knots.owed else 0.0,
        overhead=_price(points, "overhead"),
        lookup=_price(points, "lookup"),
    )


def monotone(values: FloatArray, weights: FloatArray) -> FloatArray:
    """The weighted least-squares fit that rises, or stays, along both axes.

    Args:
        values: `float64[contexts, knots]`.
        weights: how much each counts, positive, `float64[contexts, knots]`.
    """
    fitted, corrections = values.copy(), [np.zeros_like(values), np.zeros_like(values)]
    for _ in range(500):
        before = fitted
        for axis in (0, 1):
            asked = fitted + corrections[axis]
            fitted = _isotonic(asked, weights, axis)
            corrections[axis] = asked - fitted
        if np.abs(fitted - before).max() < 1e-9:
            break
    # The turns end a hair before the fit; this makes it rise exactly.
    return np.maximum.accumulate(np.maximum.accumulate(fitted, axis=0), axis=1)


def _isotonic(values: FloatArray, weights: FloatArray, axis: int) -> FloatArray:
    lines = zip(np.moveaxis(values, axis, -1), np.moveaxis(weights, axis, -1), strict=True)
    fitted = np.stack([isotonic_regression(line, weights=weight).x for line, weight in lines])
    return np.moveaxis(fitted, -1, axis)


def _fit_curve(
    points: Sequence[Point], stage: str, what: str, contexts: tuple[int, ...], knots: Sequence[int]
) -> Curve:
    """The curve of a stage over those knots that were met anywhere."""
    if not knots:
        return Curve(what, (1,), ((0.0,),) * len(contexts))
    cells = {(point.context, point.rows): point for point in points if point.stage == stage and point.rows in knots}
    rows = sorted({rows for _, rows in cells})
    if missing := [context for context in contexts if not any((context, row) in cells for row in rows)]:
        raise ProfileError(f"No {stage} was measured near context {missing}. Give more minutes, or other contexts.")
    values, weights = np.full((len(contexts), len(rows)), np.nan), np.full((len(contexts), len(rows)), _GUESS)
    for (context, row), point in cells.items():
        place = contexts.index(context), rows.index(row)
        values[place], weights[place] = np.log(max(point.seconds, _SHORTEST)), point.count
    for line in values:  # a cell that was never met counts next to nothing, but the fit needs a number
        known = ~np.isnan(line)
        line[~known] = np.interp(np.flatnonzero(~known), np.flatnonzero(known), line[known])
    fitted = np.exp(monotone(values, weights))
    return Curve(what, tuple(rows), tuple(tuple(line) for line in fitted.tolist()))


def _price(points: Sequence[Point], stage: str) -> float:
    """The median of a stage that depends on neither rows nor context, every cell counting by its measurements."""
    cells = [point for point in points if point.stage == stage]
    if not cells:
        raise ProfileError(f"No {stage} was measured. Give more minutes.")
    return float(np.median(np.repeat([cell.seconds for cell in cells], [cell.count for cell in cells])))


def _row_price(points: Sequence[Point], root: Curve) -> float:
    """What an owed token past the root's last knot costs: from the draft's own readings of whole prompts."""
    known = np.median([line[-1] for line in root.seconds])
    read = [point for point in points if point.stage == "prompt" and point.rows > root.most]
    if not read:
        raise ProfileError(f"No prompt of more than {root.most} tokens was read. Give longer contexts.")
    return max(float(np.median([(point.seconds - known) / (point.rows - root.most) for point in read])), 0.0)

"""Latency profiles of machines that are not here: three families, to train and to judge across machines.

Each is a function of a few parameters and gives a profile whose plain step, greedy and at context 0, takes `STEP`
seconds: milliseconds read as plain steps. After the roofline (Williams, Waterman and Patterson 2009), a forward takes
the longest of launching its kernels, of reading the weights, both whatever its rows, and of computing, row by row.

- overhead-bound: launching decides. Small models without CUDA graphs.
- bandwidth-bound: reading the weights decides, up to the knee. Large models on a GPU that serves one text.
- compute-bound: every row costs. CPUs, and GPUs that are small or shared.

Machines drawn at random lie between and beyond these, for policies that are to be at home on machines not yet built
(domain randomisation, Tobin et al. 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from specgym.env.common.arrays import FloatArray
from specgym.env.common.errors import ParameterError
from specgym.env.latency.costs import RoundCosts
from specgym.env.latency.curve import Curve
from specgym.env.latency.latency_profile import LatencyProfile

STEP = 1e-3
"""time of a plain step of a family's profile, greedy and at context 0 [s]"""
_MOST_ROWS = 512
_CONTEXTS = (0, 4096)  # linear between them and beyond


@dataclass(frozen=True)
class CommonCosts:
    """What the families have in common.

    Raises:
        ParameterError: a value that is negative or not finite.
    """

    draft_ratio: float = 0.1
    """a draft forward over a target forward of as many rows"""
    round_overhead: float = 0.05
    """what a speculative round costs besides its forwards [plain steps]"""
    context_growth: float = 0.03
    """what 1,024 tokens of context add to a target forward [plain steps]"""
    sampled_row: float = 0.005
    """what the noise of one row adds, of the target or of the draft, when sampling [plain steps]"""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            _check(name, value, 0, math.inf)


def overhead_bound(common: CommonCosts | None = None, row: float = 0.001) -> LatencyProfile:
    """A forward of any number of rows costs about the same, ``1 + row * (rows - 1)`` plain steps.

    Args:
        common: the costs that are no forward's own; the defaults if None.
        row: what each further row adds [plain steps].

    Raises:
        ParameterError: a parameter outside its range.
    """
    _check("row", row, 0, math.inf)
    return _profile("overhead_bound", common, {"row": row}, lambda rows: 1 + row * (rows - 1))


def bandwidth_bound(common: CommonCosts | None = None, knee: float = 48.0) -> LatencyProfile:
    """Rows are free up to the knee and cost in proportion past it: ``max(1, rows / knee)`` plain steps.

    Args:
        common: the costs that are no forward's own; the defaults if None.
        knee: rows whose computing takes as long as reading the weights, 1 or more [rows].

    Raises:
        ParameterError: a parameter outside its range.
    """
    _check("knee", knee, 1, math.inf)
    return _profile("bandwidth_bound", common, {"knee": knee}, lambda rows: np.maximum(1.0, rows / knee))


def compute_bound(common: CommonCosts | None = None, fixed: float = 0.7) -> LatencyProfile:
    """Every row costs the same: ``fixed + (1 - fixed) * rows`` plain steps.

    Args:
        common: the costs that are no forward's own; the defaults if None.
        fixed: share of a plain step that does not depend on the rows, 0 to 1.

    Raises:
        ParameterError: a parameter outside its range.
    """
    _check("fixed", fixed, 0, 1)
    return _profile("compute_bound", common, {"fixed": fixed}, lambda rows: fixed + (1 - fixed) * rows)


def drawn_machine(random: np.random.Generator) -> LatencyProfile:
    """A machine drawn at random: a forward takes ``max(1 + row * (rows - 1), rows / knee)`` plain steps.

    Everything is drawn evenly on a logarithmic scale, `row` between 1/1000 and 1/3, `knee` between 8 and 128, a draft
    forward between 1/30 and 1/4 of the target's; but overheads and the growth with the context evenly from 0 on.

    Args:
        random: draws.
    """
    row, knee, ratio = (math.exp(random.uniform(*np.log(ends))) for ends in ((1e-3, 1 / 3), (8, 128), (1 / 30, 1 / 4)))
    common = CommonCosts(ratio, random.uniform(0, 0.1), random.uniform(0, 0.1), random.uniform(0, 0.01))
    own = {"row": row, "knee": knee}
    return _profile("drawn", common, own, lambda rows: np.maximum(1 + row * (rows - 1), rows / knee))


FAMILIES: dict[str, Callable[..., LatencyProfile]] = {
    "overhead_bound": overhead_bound,
    "bandwidth_bound": bandwidth_bound,
    "compute_bound": compute_bound,
}
"""the families by name"""


def _profile(
    name: str, common: CommonCosts | None, own: dict[str, float], forward: Callable[[FloatArray], FloatArray]
) -> LatencyProfile:
    """The profile of a target whose forward takes `forward(rows)` plain steps."""
    common = common or CommonCosts()
    steps = forward(np.arange(1.0, _MOST_ROWS + 1))
    origin = {"family": name, "parameters": own | asdict(common)}
    return LatencyProfile(_costs(steps, common, 0.0), _costs(steps, common, common.sampled_row), origin)


def _costs(steps: FloatArray, common: CommonCosts, noise: float) -> RoundCosts:
    """The costs with a target forward of `steps`, `float64[rows]`, and `noise` a row [plain steps]."""
    numbers = np.arange(1, len(steps) + 1)
    growth = [common.context_growth * context / 1024 for context in _CONTEXTS]

    def curve(what: str, ratio: float, most: int = _MOST_ROWS) -> Curve:
        times = [STEP * (ratio * (steps + more) + noise * numbers) for more in growth]
        return Curve(what, tuple(numbers[:most].tolist()), tuple(tuple(row[:most].tolist()) for row in times))

    root = curve("owed tokens", common.draft_ratio)
    return RoundCosts(
        contexts=_CONTEXTS,
        plain=curve("plain steps", 1.0, most=1),
        root=root,
        level=curve("expanded nodes", common.draft_ratio),
        verify=curve("verified rows", 1.0),
        root_row=max(root.seconds[0][-1] - root.seconds[0][-2], 0.0),
        overhead=STEP * common.round_overhead,
        lookup=0.0,
    )


def _check(name: str, value: float, least: float, most: float) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        bound = f"{least:g} or more" if most == math.inf else f"within {least:g} and {most:g}"
        raise ParameterError(f"{name} must be finite and {bound}; got {value}.")

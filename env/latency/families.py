"""Latency profiles of imagined machines: three families, to train and to compare across machines.

Each family is a function of a few parameters. In its profiles, a greedy plain step at context 0 takes `STEP` seconds,
so milliseconds read as plain steps. After the roofline model (Williams, Waterman and Patterson 2009), a forward takes
the longest of three times: to launch its kernels, to read the weights, and to compute. Only the last grows with rows.

- overhead-bound: launching takes longest. Small models without CUDA graphs.
- bandwidth-bound: reading the weights takes longest, up to the knee. Large models on a GPU that serves one text.
- compute-bound: every row costs. CPUs, and GPUs that are small or shared.

Machines drawn at random lie between and beyond these. Policies trained on them have to work on unknown machines (domain
randomisation, Tobin et al. 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from specgym.env.common.arrays import FloatArray
from specgym.env.common.errors import ParameterError
from specgym.env.latency.costs import CURVES, Curve, RoundCosts
from specgym.env.latency.latency_profile import LatencyProfile

STEP = 1e-3
"""time of a plain step of a family's profile, greedy and at context 0 [s]"""
_MOST_ROWS = 512
_CONTEXTS = (0, 4096)  # linear between them and beyond


@dataclass(frozen=True)
class CommonCosts:
    """Parameters that all families share.

    Raises:
        ParameterError: a value is negative or not finite.
    """

    draft_ratio: float = 0.1
    """time of a draft forward over that of a target forward with as many rows"""
    round_overhead: float = 0.05
    """cost of a speculative round besides its forwards [plain steps]"""
    context_growth: float = 0.03
    """cost of 1,024 tokens of context in a target forward [plain steps]"""
    sampled_row: float = 0.005
    """cost of the noise of one row of target or draft when sampling [plain steps]"""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            _check(name, value, 0, math.inf)


def overhead_bound(common: CommonCosts | None = None, row: float = 0.001) -> LatencyProfile:
    """Makes a machine whose forwards all cost about the same, ``1 + row * (rows - 1)`` plain steps.

    Args:
        common: the shared parameters; the defaults if None.
        row: cost of each further row [plain steps].

    Raises:
        ParameterError: a parameter outside its range.
    """
    _check("row", row, 0, math.inf)
    return _profile("overhead_bound", common, {"row": row}, lambda rows: 1 + row * (rows - 1))


def bandwidth_bound(common: CommonCosts | None = None, knee: float = 48.0) -> LatencyProfile:
    """Makes a machine whose rows are free up to the knee and cost in proportion past it, ``max(1, rows / knee)``.

    Args:
        common: the shared parameters; the defaults if None.
        knee: rows whose computing takes as long as reading the weights, 1 or more [rows].

    Raises:
        ParameterError: a parameter outside its range.
    """
    _check("knee", knee, 1, math.inf)
    return _profile("bandwidth_bound", common, {"knee": knee}, lambda rows: np.maximum(1.0, rows / knee))


def compute_bound(common: CommonCosts | None = None, fixed: float = 0.7) -> LatencyProfile:
    """Makes a machine whose rows all cost the same: a forward takes ``fixed + (1 - fixed) * rows`` plain steps.

    Args:
        common: the shared parameters; the defaults if None.
        fixed: share of a plain step that does not depend on rows, 0 to 1.

    Raises:
        ParameterError: a parameter outside its range.
    """
    _check("fixed", fixed, 0, 1)
    return _profile("compute_bound", common, {"fixed": fixed}, lambda rows: fixed + (1 - fixed) * rows)


def drawn_machine(random: np.random.Generator) -> LatencyProfile:
    """Draws a random machine, whose forward takes ``max(1 + row * (rows - 1), rows / knee)`` plain steps.

    Three values are uniform on a logarithmic scale: `row` between 1/1000 and 1/3, `knee` between 8 and 128, and the
    draft's forward between 1/30 and 1/4 of the target's. Overheads and the growth with the context are uniform from 0.

    Args:
        random: the random generator.
    """
    row, knee, ratio = (math.exp(random.uniform(*np.log(ends))) for ends in ((1e-3, 1 / 3), (8, 128), (1 / 30, 1 / 4)))
    common = CommonCosts(ratio, random.uniform(0, 0.1), random.uniform(0, 0.1), random.uniform(0, 0.01))
    own = {"row": row, "knee": knee}
    return _profile("drawn", common, own, lambda rows: np.maximum(1 + row * (rows - 1), rows / knee))


FAMILIES: dict[str, Callable[..., LatencyProfile]] = {
    make.__name__: make for make in (overhead_bound, bandwidth_bound, compute_bound)
}
"""the families, by name"""


def _profile(
    name: str, common: CommonCosts | None, own: dict[str, float], forward: Callable[[FloatArray], FloatArray]
) -> LatencyProfile:
    """Makes the profile of a target whose forward takes `forward(rows)` plain steps."""
    common = common or CommonCosts()
    steps = forward(np.arange(1.0, _MOST_ROWS + 1))
    origin = {"family": name, "parameters": own | asdict(common)}
    return LatencyProfile(_costs(steps, common, 0.0), _costs(steps, common, common.sampled_row), origin)


def _costs(steps: FloatArray, common: CommonCosts, noise: float) -> RoundCosts:
    """Makes the costs of one mode from a target forward's `steps`, `float64[rows]`, and `noise` a row [plain steps]."""
    numbers = np.arange(1, len(steps) + 1)
    forward = steps + common.context_growth * np.array(_CONTEXTS)[:, None] / 1024  # [contexts, rows]
    target, draft = (STEP * (ratio * forward + noise * numbers) for ratio in (1.0, common.draft_ratio))
    times = {"plain": target[:, :1], "root": draft, "level": draft, "verify": target}
    curves = {
        name: Curve(CURVES[name], tuple(numbers[: table.shape[1]].tolist()), tuple(map(tuple, table.tolist())))
        for name, table in times.items()
    }
    root_row = float(max(draft[0, -1] - draft[0, -2], 0.0))
    return RoundCosts(_CONTEXTS, **curves, root_row=root_row, overhead=STEP * common.round_overhead, lookup=0.0)


def _check(name: str, value: float, least: float, most: float) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        bound = f"{least:g} or more" if most == math.inf else f"within {least:g} and {most:g}"
        raise ParameterError(f"{name} must be finite and {bound}; got {value}.")

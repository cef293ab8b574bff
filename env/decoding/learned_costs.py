"""Costs of speculation, learned from the wall time of past rounds: no profile is needed, and the costs follow load.

The model: a verification costs ``plain + row * nodes`` seconds, and drafting costs ``start + level * levels``. All four
numbers are least-squares fits over past rounds, with exponentially decaying weights and a pull to prior costs. The pull
decides while all trees have about the same size, because such rounds do not determine a slope.
"""

from __future__ import annotations

import math

from specgym.env.common.errors import check_limit
from specgym.env.tree.observation import LEVEL_PRIOR, ROW_PRIOR
from specgym.env.tree.rounds import RoundOutcome

_ROW_PULL = 512.0  # weight of the assumed cost of a row: two rounds of 16 nodes
_LEVEL_PULL = 16.0  # weight of the assumed cost of a level: one round of four levels
_OUTLIER = 2.0  # longest time of a stage, in predicted times; more is an interruption and is cut to this


class LearnedCosts:
    """Costs of a draft level and of a verified row in plain steps, learned from wall time.

    Args:
        window: rounds after which a round counts less by a factor of e [rounds].

    Raises:
        LimitError: the window is not positive.
    """

    def __init__(self, window: int = 256) -> None:
        check_limit("window", window)
        keep = math.exp(-1 / window)
        self._verifying, self._drafting = _Line(keep, _ROW_PULL), _Line(keep, _LEVEL_PULL)

    @property
    def plain(self) -> float:
        """Time of a plain step; 0 before the first round [s]."""
        return self._verifying.start

    def note(self, outcome: RoundOutcome) -> None:
        """Learns from a round that did not read the prompt."""
        seconds, levels = outcome.seconds, len(outcome.level_rows)
        self._verifying.fit(outcome.drafted, seconds.verify + seconds.commit, per_start=ROW_PRIOR)
        if levels:
            self._drafting.fit(levels, seconds.draft, assumed=LEVEL_PRIOR * self.plain)

    def level_cost(self, context: int) -> float:
        """See `Costs`; 0 before the first round [plain steps]."""
        if not self.plain:
            return 0.0
        return self._drafting.slope / self.plain if self._drafting.rounds else LEVEL_PRIOR

    def row_cost(self, context: int) -> float:
        """See `Costs`; 0 before the first round [plain steps]."""
        return self._verifying.slope / self.plain if self.plain else 0.0


class _Line:
    """Least-squares fit of ``seconds = start + slope * size``, with a pull of the slope to a prior.

    Args:
        keep: factor on the weight of past rounds at each new round.
        pull: weight of the prior, in squared sizes.
    """

    def __init__(self, keep: float, pull: float) -> None:
        self._keep, self._pull = keep, pull
        self.rounds = self._sizes = self._squares = self._seconds = self._products = 0.0
        self.start = self.slope = 0.0

    def fit(self, size: int, seconds: float, assumed: float = 0.0, per_start: float = 0.0) -> None:
        """Adds a round and fits start and slope, neither below 0.

        The slope is pulled to ``assumed + per_start * start`` seconds. A slope with a prior in starts needs a positive
        start. If the fit has none (noise, or times that grow faster than in proportion), the mean time is used with
        slope 0. Any other line without a start goes through the origin.
        """
        if self.rounds:
            seconds = min(seconds, _OUTLIER * (self.start + self.slope * size))
        keep = self._keep
        self.rounds = keep * self.rounds + 1
        self._sizes = keep * self._sizes + size
        self._squares = keep * self._squares + size * size
        self._seconds = keep * self._seconds + seconds
        self._products = keep * self._products + seconds * size
        pull, corner = self._pull, self._sizes - self._pull * per_start
        first, last = self.rounds + pull * per_start**2, self._squares + pull
        left, right = self._seconds - pull * per_start * assumed, self._products + pull * assumed
        determinant = first * last - corner * corner
        self.start = (left * last - corner * right) / determinant
        self.slope = (first * right - corner * left) / determinant
        if self.slope < 0 or (self.start <= 0 and per_start):
            self.start, self.slope = self._seconds / self.rounds, 0.0
        elif self.start < 0:
            self.start, self.slope = 0.0, right / last

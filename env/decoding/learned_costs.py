"""What more speculation costs on this machine, learned from the rounds themselves: no calibration, and it follows load.

A verification is taken to cost ``plain + row * nodes`` seconds, and drafting ``beginning + level * levels``. All four
are found by least squares over past rounds, which count less the older they are, with a pull to what is assumed of a
machine that nothing is known of. The pull is what decides while all trees have about the same size, from which no slope
can be told.
"""

from __future__ import annotations

import math

from specgym.env.tree.observation import LEVEL_PRIOR, ROW_PRIOR
from specgym.env.tree.rounds import RoundOutcome, check_limit

_ROW_PULL = 512.0  # weight of the assumed cost of a row: two rounds of 16 nodes
_LEVEL_PULL = 16.0  # of a level: one round of four levels
_OUTLIER = 2.0  # a stage that took this many times what was expected was held up by something else, and counts as that


class LearnedCosts:
    """Costs of a level and of a row in plain steps, as observations tell them, learned from wall time.

    Args:
        window: rounds after which a round counts less by a factor of e [rounds].

    Raises:
        LimitError: a window that is not positive.
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
        """Takes a round into account that read no prompt."""
        seconds, levels = outcome.seconds, len(outcome.level_rows)
        self._verifying.note(outcome.drafted, seconds.verify + seconds.commit)
        self._verifying.solve(per_start=ROW_PRIOR)
        if levels:
            self._drafting.note(levels, seconds.draft)
            self._drafting.solve(LEVEL_PRIOR * self.plain)

    def level_cost(self, context: int) -> float:
        """See `Costs`; 0 before the first round [plain steps]."""
        if not self.plain:
            return 0.0
        return self._drafting.slope / self.plain if self._drafting.rounds else LEVEL_PRIOR

    def row_cost(self, context: int) -> float:
        """See `Costs`; 0 before the first round [plain steps]."""
        return self._verifying.slope / self.plain if self.plain else 0.0


class _Line:
    """Least squares of ``seconds = start + slope * size``, with a pull of the slope to what is assumed of it.

    Args:
        keep: what a round still counts after another one.
        pull: weight of the assumption, in squared sizes.
    """

    def __init__(self, keep: float, pull: float) -> None:
        self._keep, self._pull = keep, pull
        self.rounds = self._sizes = self._squares = self._seconds = self._products = 0.0
        self.start = self.slope = 0.0

    def note(self, size: int, seconds: float) -> None:
        if self.rounds:
            seconds = min(seconds, _OUTLIER * (self.start + self.slope * size))
        keep = self._keep
        self.rounds = keep * self.rounds + 1
        self._sizes = keep * self._sizes + size
        self._squares = keep * self._squares + size * size
        self._seconds = keep * self._seconds + seconds
        self._products = keep * self._products + seconds * size

    def solve(self, assumed: float = 0.0, per_start: float = 0.0) -> None:
        """Fits both, the slope pulled to `assumed` seconds and `per_start` starts; neither is less than nothing.

        Where the slope is told in starts there has to be one: of noise, or of what grows faster than in proportion, the
        mean says more. Any other line without a start goes through the origin.
        """
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

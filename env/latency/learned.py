"""What more speculation costs on this machine, learned from the rounds themselves: no calibration, and it follows load.

A verification is taken to cost ``plain + row * nodes`` seconds, a draft level ``level`` seconds. All three are found by
least squares over past rounds, which count less the older they are, with a pull to what is assumed of a machine that
nothing is known of. The pull is what decides while all trees have about the same size, from which no slope can be told.
"""

from __future__ import annotations

import math

from env.observation import LEVEL_PRIOR, ROW_PRIOR
from env.rounds import RoundOutcome, check_limit

__all__ = ["LearnedCosts"]

_PULL = 512.0  # weight of the assumed cost of a row: two rounds of 16 nodes
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
        self._keep = math.exp(-1 / window)
        self._rounds = self._nodes = self._squares = self._seconds = self._products = 0.0
        self._levels = self._drafting = 0.0
        self.plain = 0.0
        """time of a plain step; 0 before the first round [s]"""
        self._row = self._level = 0.0

    def note(self, outcome: RoundOutcome) -> None:
        """Takes a round into account that read no prompt."""
        seconds, nodes, levels = outcome.seconds, outcome.drafted, len(outcome.level_rows)
        took, drafting = seconds.verify + seconds.commit, seconds.draft
        if self.plain:
            took = min(took, _OUTLIER * (self.plain + self._row * nodes))
            drafting = min(drafting, _OUTLIER * self._level * levels) if self._levels else drafting
        keep = self._keep
        self._rounds = keep * self._rounds + 1
        self._nodes = keep * self._nodes + nodes
        self._squares = keep * self._squares + nodes * nodes
        self._seconds = keep * self._seconds + took
        self._products = keep * self._products + took * nodes
        if levels:
            self._levels = keep * self._levels + levels * levels
            self._drafting = keep * self._drafting + drafting * levels
        self._solve()

    def level_cost(self, context: int) -> float:
        """See `Costs`; 0 before the first round [plain steps]."""
        return self._level / self.plain if self.plain else 0.0

    def row_cost(self, context: int) -> float:
        """See `Costs`; 0 before the first round [plain steps]."""
        return self._row / self.plain if self.plain else 0.0

    def _solve(self) -> None:
        """Least squares of ``plain + row * nodes``, where ``row - ROW_PRIOR * plain`` is pulled to 0."""
        corner = self._nodes - _PULL * ROW_PRIOR
        first, last = self._rounds + _PULL * ROW_PRIOR**2, self._squares + _PULL
        determinant = first * last - corner * corner
        plain = (self._seconds * last - corner * self._products) / determinant
        row = (first * self._products - corner * self._seconds) / determinant
        if plain <= 0:  # nothing but noise: the mean says more
            plain, row = self._seconds / self._rounds, 0.0
        self.plain, self._row = plain, max(row, 0.0)
        pull = _LEVEL_PULL * LEVEL_PRIOR * plain
        self._level = (self._drafting + pull) / (self._levels + _LEVEL_PULL)

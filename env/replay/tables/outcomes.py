"""Outcomes of many rounds as arrays, an index that keeps each distinct outcome once, and times on several machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from specgym.env.common.arrays import BoolArray, FloatArray, IntArray
from specgym.env.latency.costs import RoundCosts
from specgym.env.latency.latency_profile import LatencyProfile

FACTS = 6
"""fields of `Outcomes` before `deeper_rows`"""

Rows = npt.NDArray[np.int32]
"""outcomes as rows: the facts, then the rows of each draft level below the root"""


class Outcomes(NamedTuple):
    """Outcomes of n rounds; see `RoundOutcome`."""

    accepted: IntArray
    """`int64[n]`"""
    drafted: IntArray
    """`int64[n]`"""
    depth: IntArray
    """`int64[n]`"""
    asked: BoolArray
    """whether the draft model was asked, `bool[n]`"""
    lookup_nodes: IntArray
    """`int64[n]`"""
    kept: IntArray
    """accepted nodes that the draft model need not read again, `int64[n]`"""
    deeper_rows: IntArray
    """rows of each draft forward below the root, padded with zeros, `int64[n, levels]`"""

    def rows(self, levels: int) -> Rows:
        """Returns the outcomes as rows, padded to so many draft levels below the root, `int32[n, facts + levels]`."""
        deeper = np.pad(self.deeper_rows, ((0, 0), (0, levels - self.deeper_rows.shape[1])))
        return np.concatenate([np.stack(self[:FACTS], axis=1), deeper], axis=1, dtype=np.int32)

    def take(self, rounds: IntArray) -> Outcomes:
        """Returns the outcomes of some of the rounds."""
        return Outcomes._make(values[rounds] for values in self)

    @classmethod
    def of(cls, rows: Rows) -> Outcomes:
        """Returns the outcomes that `rows` wrote."""
        columns = rows.T.astype(np.int64, order="C")  # each fact in one piece
        accepted, drafted, depth, asked, lookup_nodes, kept = columns[:FACTS]
        return cls(accepted, drafted, depth, asked > 0, lookup_nodes, kept, columns[FACTS:].T)


class OutcomeIndex:
    """Distinct outcomes by number. Number 0 is a plain round of a greedy text; it also stands for "no round yet".

    Args:
        levels: most draft levels below the root.

    Attributes:
        sampled: whether the texts were sampled, which decides the time of a round, `bool[outcomes]`.
    """

    def __init__(self, levels: int) -> None:
        self.levels = levels
        self._rows: Rows = np.zeros((1, 1 + FACTS + levels), np.int32)  # the first column: sampled
        self._numbers: dict[bytes, int] = {self._rows[0].tobytes(): 0}

    def __len__(self) -> int:
        return len(self._rows)

    def enter(self, rows: Rows, greedy: bool) -> IntArray:
        """Returns the number of each outcome, `int64[n]`; new ones are added. The rows have to be distinct."""
        known, before = self._numbers, len(self._rows)
        rows = np.concatenate([np.full((len(rows), 1), not greedy, np.int32), rows], axis=1)
        numbers = np.array([known.setdefault(row.tobytes(), len(known)) for row in rows], np.int64)
        self._rows = np.concatenate([self._rows, rows[numbers >= before]])
        return numbers

    @property
    def sampled(self) -> BoolArray:
        """See the class."""
        return self._rows[:, 0] > 0

    def since(self, number: int) -> Outcomes:
        """Returns the outcomes from a number on."""
        return Outcomes.of(self._rows[number:, 1:])

    def at(self, numbers: IntArray) -> Outcomes:
        """Returns the outcomes of n numbers."""
        return Outcomes.of(self._rows[numbers, 1:])


def distinct_rows(rows: Rows) -> tuple[Rows, IntArray]:
    """Returns each distinct row once, and which of these every row is, `int64[n]`."""
    # Sorting whole rows is slow, so sort a hash of each and check that no two different rows share one.
    factors = np.random.default_rng(0).integers(1, 2**62, rows.shape[1], dtype=np.int64)
    with np.errstate(over="ignore"):
        hashes = (rows * factors).sum(axis=1)
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    distinct, numbers = rows[first], inverse.reshape(-1)
    if not (distinct[numbers] == rows).all():
        distinct, numbers = np.unique(rows, axis=0, return_inverse=True)
    return distinct, numbers.reshape(-1)


def seconds_after_root(costs: RoundCosts, contexts: IntArray, outcomes: Outcomes, asked: BoolArray) -> FloatArray:
    """Returns the times of rounds without the draft's first level, which depends on the rounds before.

    Args:
        costs: of the machine.
        contexts: positions of the roots, `int64[n, contexts]` or `int64[contexts]`.
        outcomes: of n rounds.
        asked: whether the draft model was asked in each round, `bool[n]`.

    Returns:
        `float64[n, contexts]` [s].

    Raises:
        UnmeasuredError: a round has more rows than the profile knows.
    """
    rows = np.pad(outcomes.deeper_rows, ((0, 0), (1, 0)))[:, None]  # [n, 1, levels], with no rows at the root
    verified, lookup_nodes = 1 + outcomes.drafted[:, None], outcomes.lookup_nodes[:, None]
    seconds = costs.rounds_seconds(contexts, rows, verified, lookup_nodes)
    # A round that asks the draft but drafts nothing is no plain one.
    empty = asked[:, None] & (verified == 1) & (lookup_nodes == 0)
    if empty.any():
        low, share = costs.between(contexts)
        seconds = np.where(empty, costs.overhead + costs.verify.at_all(low, share, np.ones_like(low)), seconds)
    return seconds


class RoundTimes:
    """Round times for each pair of latency profile and mode (greedy, sampled): each pair is called a machine.

    A round's time is linear in the context between the contexts that a profile knows. So the time of an outcome is kept
    at these contexts. The draft's first level is added by the number of tokens that it has not read yet.

    Args:
        profiles: the profiles.
        modes: whether texts are greedy, for each mode of which there are texts.
        contexts: positions of roots: from the first of these to before the last of them [tokens].
        observes: whether the draft is asked about the root in every round.

    Attributes:
        plain: time of a plain round, `float64[machines, contexts]` [s].
        unit_costs: cost of a draft level and of a row, `float64[machines, contexts, 2]` [plain steps].
    """

    def __init__(
        self, profiles: Sequence[LatencyProfile], modes: Sequence[bool], contexts: tuple[int, int], observes: bool
    ) -> None:
        self.modes, self.observes, self.first = tuple(modes), observes, contexts[0]
        self.costs = [profile.costs(greedy) for profile in profiles for greedy in self.modes]
        places = np.arange(*contexts)
        between = [costs.between(places) for costs in self.costs]
        self._low, self._share = np.stack([low for low, _ in between]), np.stack([share for _, share in between])
        self.plain = np.stack([costs.plains_seconds(places) for costs in self.costs])
        units = [(costs.level_cost(at), costs.row_cost(at)) for costs in self.costs for at in (places + 1).tolist()]
        self.unit_costs = np.array(units).reshape(*self.plain.shape, 2)
        self._root, self._level, self._verify, self._plain = (
            _side_by_side([getattr(costs, curve).table for costs in self.costs])
            for curve in ("root", "level", "verify", "plain")
        )
        self._fixed = np.array([(costs.overhead, costs.lookup) for costs in self.costs]).T
        self._root_row = np.array([costs.root_row for costs in self.costs])
        self._most = np.array([costs.root.most for costs in self.costs])
        self._rounds: FloatArray = np.empty((0, len(profiles), self._root.shape[1]))

    def number(self, profiles: IntArray, greedy: BoolArray) -> IntArray:
        """Returns the machine of each profile and mode, `int64[n]`."""
        modes = np.minimum(greedy != self.modes[0], len(self.modes) - 1)
        return np.asarray(profiles * len(self.modes) + modes, np.int64)

    def add(self, index: OutcomeIndex) -> None:
        """Computes the times of the outcomes that are new in an index; it has to be the same index every time.

        Raises:
            UnmeasuredError: a round has more rows than a profile knows.
        """
        outcomes, sampled = index.since(len(self._rounds)), index.sampled[len(self._rounds) :]
        times = np.zeros((len(sampled), *self._rounds.shape[1:]))
        for profile, knot in np.ndindex(*times.shape[1:]):
            machines = self.number(np.full(len(sampled), profile), ~sampled)
            times[:, profile, knot] = self._after_root(outcomes, machines, knot)
        self._rounds = np.concatenate([self._rounds, times])

    def _after_root(self, outcomes: Outcomes, machines: IntArray, knots: IntArray | int) -> FloatArray:
        """Returns the times of n rounds at contexts that profiles know, without the draft's first level, `float64[n]`.

        Raises:
            UnmeasuredError: a round has more rows than a profile knows.
        """
        verified = np.minimum(1 + outcomes.drafted, self._verify.shape[2] - 1)
        rows = np.minimum(outcomes.deeper_rows.T, self._level.shape[2] - 1)  # [levels, n]
        overhead, lookup = self._fixed[:, machines]
        seconds = overhead + lookup * outcomes.lookup_nodes + self._verify[machines, knots, verified]
        seconds += self._level[machines, knots, rows].sum(axis=0)
        plain = ~outcomes.asked & (outcomes.drafted == 0) & (outcomes.lookup_nodes == 0) & (not self.observes)
        seconds = np.where(plain, self._plain[machines, knots, 1], seconds)
        if np.isnan(seconds).any():
            number = int(np.isnan(seconds).argmax())
            costs, drafted = self.costs[machines[number]], int(outcomes.drafted[number])
            costs.round_seconds(0, (1, *filter(None, outcomes.deeper_rows[number].tolist())), 1 + drafted)  # raises
        return np.asarray(seconds)

    def seconds(
        self, machines: IntArray, contexts: IntArray, outcomes: IntArray | Outcomes, unread: IntArray
    ) -> FloatArray:
        """Returns the times of n rounds, `float64[n]` [s].

        Args:
            machines: where, `int64[n]`.
            contexts: positions of the roots, `int64[n]`.
            outcomes: their outcomes, or numbers of outcomes that were added before, `int64[n]`.
            unread: committed tokens that the draft reads at its first level; 0 where it is not asked, `int64[n]`.

        Raises:
            UnmeasuredError: a round has more rows than its profile knows.
        """
        where = contexts - self.first
        low, share, profiles = self._low[machines, where], self._share[machines, where], machines // len(self.modes)
        if isinstance(outcomes, Outcomes):
            below, above = (self._after_root(outcomes, machines, knots) for knots in (low, low + 1))
        else:
            below, above = (self._rounds[outcomes, profiles, knots] for knots in (low, low + 1))
        known = np.minimum(unread, self._most[machines])
        root = self._root[machines, low, known]
        seconds = below + share * (above - below)
        first_level = root + share * (self._root[machines, low + 1, known] - root)
        return np.asarray(seconds + first_level + self._root_row[machines] * (unread - known))


def _side_by_side(tables: Sequence[FloatArray]) -> FloatArray:
    """Tables of times side by side, `float64[tables, most contexts + 1, most rows + 2]`.

    A context past a table's last one repeats it; a row past the last one is not a number.
    """
    contexts, rows = (max(table.shape[axis] for table in tables) for axis in (0, 1))
    joined = np.full((len(tables), contexts + 1, rows + 1), np.nan)
    for times, table in zip(joined, tables, strict=True):
        times[: len(table), : table.shape[1]] = table
        times[len(table) :, : table.shape[1]] = table[-1]
    return joined

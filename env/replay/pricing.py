"""What rounds take on several machines, many rounds at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specgym.env.common.arrays import BoolArray, FloatArray, IntArray
from specgym.env.latency.costs import RoundCosts
from specgym.env.latency.latency_profile import LatencyProfile
from specgym.env.replay.action_table import OutcomeIndex
from specgym.env.replay.vector_features import MACHINE_COLUMNS, table_of
from specgym.env.tree.observation import Observation


class RoundTimes:
    """Latency profiles side by side, each for the ways of decoding that there are texts of: a machine each.

    A round's time is linear in the context between the contexts that a profile knows. So the time of an outcome is kept
    at these, and what the draft's first level adds is found by what it owes.

    Args:
        profiles: the profiles.
        ways: whether texts are greedy, each that there is once.
        contexts: positions of roots: from the first of these to before the last of them [tokens].
        observes: whether the draft is asked about the root in every round.

    Attributes:
        plain: time of a plain round, `float64[machines, contexts]` [s].
        features: the observation's entries of the machine, `float64[machines, contexts, columns]`.
    """

    def __init__(
        self, profiles: Sequence[LatencyProfile], ways: Sequence[bool], contexts: tuple[int, int], observes: bool
    ) -> None:
        self.ways, self.observes, self.first = tuple(ways), observes, contexts[0]
        self.costs = [profile.costs(greedy) for profile in profiles for greedy in self.ways]
        places = np.arange(*contexts)
        between = [costs.between(places) for costs in self.costs]
        self._low, self._share = np.stack([low for low, _ in between]), np.stack([share for _, share in between])
        self.plain = np.stack([costs.plains_seconds(places) for costs in self.costs])
        self.features = np.stack([_features(costs, places) for costs in self.costs])
        self._root = _side_by_side([costs.root.table for costs in self.costs])
        self._root_row = np.array([costs.root_row for costs in self.costs])
        self._most = np.array([costs.root.most for costs in self.costs])
        self._rounds: FloatArray = np.empty((0, len(profiles), self._root.shape[1]))

    def number(self, profiles: IntArray, greedy: BoolArray) -> IntArray:
        """The machine of each profile and way of decoding, `int64[n]`."""
        return np.asarray(profiles * len(self.ways) + (greedy != self.ways[0]), np.int64)

    def price(self, book: OutcomeIndex) -> None:
        """Gets to know the outcomes that are new in a book; the same book every time.

        Raises:
            UnmeasuredError: a round has more rows than a profile knows.
        """
        fresh = np.arange(len(self._rounds), len(book))
        found = np.zeros((len(fresh), *self._rounds.shape[1:]))
        for number, costs in enumerate(self.costs):
            profile, way = divmod(number, len(self.ways))
            mine = np.flatnonzero(book.sampled[fresh] != self.ways[way])
            seconds = self._at_knots(costs, book, fresh[mine])
            found[mine, profile] = np.pad(seconds, ((0, 0), (0, found.shape[2] - seconds.shape[1])), mode="edge")
        self._rounds = np.concatenate([self._rounds, found])

    def seconds(self, machines: IntArray, contexts: IntArray, outcomes: IntArray, owed: IntArray) -> FloatArray:
        """Times of n rounds, `float64[n]` [s].

        Args:
            machines: where, `int64[n]`.
            contexts: positions of the roots, `int64[n]`.
            outcomes: numbers of what came of them, priced before, `int64[n]`.
            owed: committed tokens that the draft reads at its first level; 0 where it is not asked, `int64[n]`.
        """
        where = contexts - self.first
        low, share, profiles = self._low[machines, where], self._share[machines, where], machines // len(self.ways)
        below, known = self._rounds[outcomes, profiles, low], np.minimum(owed, self._most[machines])
        root = self._root[machines, low, known]
        seconds = below + share * (self._rounds[outcomes, profiles, low + 1] - below)
        first_level = root + share * (self._root[machines, low + 1, known] - root)
        return np.asarray(seconds + first_level + self._root_row[machines] * (owed - known))

    def _at_knots(self, costs: RoundCosts, book: OutcomeIndex, outcomes: IntArray) -> FloatArray:
        """Times without the draft's first level at the contexts that a profile knows, `float64[outcomes, contexts]`."""
        contexts = np.array(costs.contexts)
        asked = (book.fact("asked")[outcomes] > 0) | self.observes
        # One owed token tells a round that asks from a plain one; its time is taken off again.
        rows = np.concatenate([asked[:, None], book.deeper_rows[outcomes]], axis=1, dtype=np.int64)
        verified, lookup = 1 + book.fact("drafted")[outcomes], book.fact("lookup_nodes")[outcomes]
        seconds = costs.rounds_seconds(contexts, rows[:, None, :], verified[:, None], lookup[:, None])
        return np.asarray(seconds - costs.roots_seconds(contexts, rows[:, :1]))


def _features(costs: RoundCosts, contexts: IntArray) -> FloatArray:
    """What observations say of a machine when the root stands at these contexts."""
    seen = [
        Observation(0, 0, 0, level_cost=costs.level_cost(length), row_cost=costs.row_cost(length))
        for length in (contexts + 1).tolist()
    ]
    return table_of(seen, MACHINE_COLUMNS)


def _side_by_side(tables: Sequence[FloatArray]) -> FloatArray:
    """Tables of times, filled up by repetition: `float64[tables, most contexts + 1, most rows + 1]`."""
    contexts, rows = (max(table.shape[axis] for table in tables) for axis in (0, 1))
    return np.stack(
        [np.pad(table, ((0, contexts + 1 - len(table)), (0, rows - table.shape[1])), mode="edge") for table in tables]
    )

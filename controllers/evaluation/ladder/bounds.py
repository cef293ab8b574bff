"""Bounds that no controller can beat on a trace: the best choice of every round, knowing what will be accepted.

*Myopic* takes the most tokens per time of each round. The *clairvoyant* takes the least time to the end of the text, by
dynamic programming over positions. The time of a round depends on the rounds before by the tokens that the draft has
not read yet, so the number of these is part of the state.

That number is exact up to the last knot of the latency profile's curve, and held there past it. Unread tokens past the
knot are charged for the prompt only. So the bound may be too low, but never too high.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from specgym.env.common.arrays import BoolArray, FloatArray, IntArray
from specgym.env.common.processes import map_on_cores, usable_cores
from specgym.env.latency.costs import RoundCosts
from specgym.env.replay.tables.action_table import OutcomeTable
from specgym.env.replay.tables.outcomes import Outcomes, seconds_after_root
from specgym.env.replay.tables.player import Player, Rounds
from specgym.env.replay.tables.trace_table import TraceTable

_Choice: TypeAlias = tuple[IntArray, IntArray, BoolArray, IntArray, FloatArray]
"""the fields of `Rounds` but the tokens, for each of n roots; times are without the draft's first level"""

_PARTS_PER_CORE = 4  # of a grid: enough to share the work evenly, few enough to send the results


class Playback(NamedTuple):
    """Time and nodes of whole texts, one number for each, or one for each choice and text."""

    seconds: FloatArray
    """predicted time of all rounds, `float64[..., texts]` [s]"""
    rounds: IntArray
    """`int64[..., texts]`"""
    drafted: IntArray
    """`int64[..., texts]`"""
    accepted: IntArray
    """`int64[..., texts]`"""


class Choices:
    """The cheapest choice of every kind at every root of some texts.

    Kinds differ by the number of accepted tokens and by whether the draft model is asked; where it is, also by the
    number of accepted tokens that it keeps. Times are without the draft's first level, whose cost depends on the rounds
    before.

    Args:
        roots: number of roots.
        most: accepted tokens are fewer than this.

    Attributes:
        accepted, kept, asked: of each kind, `int64[kinds]` and `bool[kinds]`; kinds that do not ask come first.
        seconds: infinity where there is no such choice, `float64[roots, kinds]` [s].
        drafted: nodes of those trees, `int32[roots, kinds]`.
    """

    def __init__(self, roots: int, most: int) -> None:
        self.most, counts = most, np.arange(most)
        self.accepted: IntArray = np.concatenate([counts, np.repeat(counts, most)])
        self.kept: IntArray = np.concatenate([np.zeros(most, np.int64), np.tile(counts, most)])
        self.asked: BoolArray = np.arange(len(self.kept)) >= most
        self.seconds = np.full((roots, len(self.kept)), np.inf)
        self.drafted = np.zeros((roots, len(self.kept)), np.int32)

    def add(self, outcomes: Outcomes, seconds: FloatArray) -> None:
        """Takes in a choice wherever it is cheaper, given its outcomes and times at every root."""
        kind = outcomes.accepted + outcomes.asked * (outcomes.accepted * (self.most - 1) + self.most + outcomes.kept)
        cheaper = np.flatnonzero(seconds < self.seconds[np.arange(len(seconds)), kind])
        where = cheaper, kind[cheaper]
        self.seconds[where], self.drafted[where] = seconds[cheaper], outcomes.drafted[cheaper]

    def merge(self, other: Choices) -> None:
        """Takes in other choices wherever they are cheaper."""
        cheaper = other.seconds < self.seconds
        self.seconds[cheaper], self.drafted[cheaper] = other.seconds[cheaper], other.drafted[cheaper]

    def best(self, roots: IntArray, values: FloatArray) -> _Choice:
        """Returns the choice of least `values[n, kinds]` at each of n roots."""
        kind = values.argmin(axis=1)
        where = roots, kind
        return self.accepted[kind], self.drafted[where], self.asked[kind], self.kept[kind], self.seconds[where]


def collect_choices(
    outcomes: OutcomeTable, machines: Sequence[RoundCosts], progress: Callable[[], None] = lambda: None
) -> list[Choices]:
    """Returns the cheapest choices of a whole grid, for each machine.

    Args:
        outcomes: of all choices, for one table of texts. Plain decoding has to be one of the choices.
        machines: costs of one machine or several; outcomes are the same on all of them.
        progress: called for each choice.

    Raises:
        UnmeasuredError: a round has more rows than the profile knows.
    """
    (table,), count = outcomes.tables, len(outcomes.choices)
    most = max(parameters.max_depth for parameters in outcomes.choices) + 1

    def collect(numbers: IntArray) -> list[Choices]:
        cheapest = [Choices(len(table.roots), most) for _ in machines]
        for number in numbers.tolist():
            found = outcomes.outcomes(number)
            for choices, costs in zip(cheapest, machines, strict=True):
                choices.add(found, _seconds(table, costs, found))
        return cheapest

    cores = outcomes.cores or usable_cores()
    parts = np.array_split(np.arange(count), min(cores * _PARTS_PER_CORE, count))
    cheapest = [Choices(len(table.roots), most) for _ in machines]
    for numbers, part in zip(parts, map_on_cores(collect, parts, cores), strict=True):
        for choices, others in zip(cheapest, part, strict=True):
            choices.merge(others)  # in the grid's order: of equal choices the first wins
        for _ in numbers:
            progress()
    return cheapest


def _seconds(table: TraceTable, costs: RoundCosts, outcomes: Outcomes) -> FloatArray:
    """Times of rounds without the draft's first level, `float64[roots]`."""
    return seconds_after_root(costs, table.contexts[:, None], outcomes, outcomes.asked)[:, 0]


def _play(
    table: TraceTable, costs: RoundCosts, choose: Callable[[IntArray, IntArray, IntArray], _Choice], copies: int = 1
) -> Playback:
    """Plays all texts side by side, each so many times.

    `choose(episodes, roots, unread)` decides about the episodes of those numbers, which stand at the roots of those
    numbers. Episodes are copy by copy and text by text.
    """
    count = len(table.texts) * copies
    player = Player(table.first, table.first + table.lengths, table.unread, count)
    player.begin(slice(None), np.tile(np.arange(len(table.texts)), copies))
    seconds, (rounds, drafted, accepted) = np.zeros(count), np.zeros((3, count), np.int64)
    while len(active := np.flatnonzero(~player.ended)):
        roots, unread = player.place[active], player.unread[active]
        choice = choose(active, roots, unread)
        played = Rounds(player.committed(active, choice[0]), *choice)
        player.play(active, played)
        first_level = costs.roots_seconds(table.contexts[roots], unread)
        seconds[active] += played.seconds + np.where(played.asked, first_level, 0.0)
        rounds[active] += 1
        drafted[active] += played.drafted
        accepted[active] += played.accepted
    return Playback(seconds, rounds, drafted, accepted)


def play_static(table: TraceTable, costs: RoundCosts, choices: Sequence[Outcomes]) -> Playback:
    """Plays all texts under each of some choices that never change, given their outcomes; `[choices, texts]`.

    Raises:
        UnmeasuredError: a round has more rows than the profile knows.
    """
    each = [(one.accepted, one.drafted, one.asked, one.kept, _seconds(table, costs, one)) for one in choices]
    columns, texts = [np.stack(column) for column in zip(*each, strict=True)], len(table.texts)  # [choices, roots] each

    def choose(episodes: IntArray, roots: IntArray, unread: IntArray) -> _Choice:
        accepted, drafted, asked, kept, seconds = (column[episodes // texts, roots] for column in columns)
        return accepted, drafted, asked, kept, seconds

    played = _play(table, costs, choose, len(choices))
    return Playback._make(column.reshape(-1, texts) for column in played)


def myopic(table: TraceTable, costs: RoundCosts, choices: Choices) -> Playback:
    """Plays the choice of most tokens per time in each round."""
    left = table.end[table.owner[table.roots]] - 1 - table.roots  # tokens up to the end

    def choose(episodes: IntArray, roots: IntArray, unread: IntArray) -> _Choice:
        tokens = np.minimum(choices.accepted + 1, left[roots][:, None])
        first_level = costs.roots_seconds(table.contexts[roots], unread)[:, None] * choices.asked
        return choices.best(roots, (choices.seconds[roots] + first_level) / tokens)

    return _play(table, costs, choose)


def clairvoyant(table: TraceTable, costs: RoundCosts, choices: Choices) -> Playback:
    """Plays every text in the least time to its end."""
    future = _Future(table, costs, choices)

    def choose(episodes: IntArray, roots: IntArray, unread: IntArray) -> _Choice:
        return choices.best(roots, future.times(episodes, roots - table.first[episodes], unread[:, None])[:, 0])

    return _play(table, costs, choose)


class _Future:
    """Least time from a root to the end of its text, by the tokens that the draft has not read: backwards from the end.

    Attributes:
        least: `float64[texts, steps, unread]` [s].
    """

    def __init__(self, table: TraceTable, costs: RoundCosts, choices: Choices) -> None:
        self.table, self.costs, self.choices = table, costs, choices
        self.most = costs.root.most  # unread tokens past these cost the same
        steps = int(table.lengths.max())
        # Past its end a text takes no more time.
        self.least = np.zeros((len(table.lengths), steps + choices.most + 1, self.most + 1))
        for step in range(steps - 1, -1, -1):
            texts = np.flatnonzero(table.lengths > step)
            unread = np.broadcast_to(np.arange(1, self.most + 1), (len(texts), self.most))
            self.least[texts, step, 1:] = self.times(texts, np.full(len(texts), step), unread).min(axis=2)

    def times(self, texts: IntArray, steps: IntArray, unread: IntArray) -> FloatArray:
        """Returns the time to the end by each choice, `float64[n, unread, kinds]`.

        Args:
            texts: numbers of n texts.
            steps: where each stands.
            unread: several numbers of tokens that the draft has not read, `int64[n, unread]`.
        """
        table, choices, unread = self.table, self.choices, np.minimum(unread, self.most)
        roots = table.first[texts] + steps
        first_level = self.costs.roots_seconds(table.contexts[roots][:, None], unread)[:, :, None] * choices.asked
        following = (steps[:, None] + choices.accepted + 1)[:, None]  # [n, 1, kinds]
        left = np.where(choices.asked, 0, unread[:, :, None]) + choices.accepted + 1 - choices.kept
        future = self.least[texts[:, None, None], following, np.clip(left, 0, self.most)]
        return np.asarray(choices.seconds[roots][:, None] + first_level + future)

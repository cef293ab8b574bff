"""What no controller can beat on a trace: the best choice of every round, seeing what will be accepted.

*Myopic* takes the most tokens per time of each round; the *clairvoyant* the least time to the end of the text, by
dynamic programming over positions. A round's time depends on the round before by the tokens that the draft still owes,
so these are part of the state: exactly up to the last knot of the latency profile's curve, and as many past it. What is
owed past it is charged for the prompt and for nothing else, so that the bound may be too low, never too high.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from specgym.env.common.arrays import FloatArray, IntArray
from specgym.env.latency.costs import RoundCosts
from specgym.env.replay.tabulation import Outcomes, TraceTable, tabulate
from specgym.env.tree.parameters import TreeParameters


@dataclass(frozen=True)
class Playback:
    """How texts came about, one number a text."""

    seconds: FloatArray
    """predicted time of all rounds, `float64[texts]` [s]"""
    rounds: IntArray
    """`int64[texts]`"""
    drafted: IntArray
    """`int64[texts]`"""
    accepted: IntArray
    """`int64[texts]`"""


@dataclass(frozen=True)
class _Round:
    """A choice for each of some roots and what it brings; times are without the draft's first level."""

    seconds: FloatArray
    accepted: IntArray
    drafted: IntArray
    kept: IntArray
    asked: IntArray


@dataclass(frozen=True)
class Choices:
    """The cheapest way to every number of accepted tokens, at every root of a corpus.

    The first kind asks the draft model, the second does not. Times are without the draft's first level, whose cost the
    rounds before decide; infinity where no choice does it.
    """

    asking: FloatArray
    """by accepted tokens and of these the draft's kept ones, `float64[roots, accepted, kept]` [s]"""
    asking_drafted: IntArray
    """nodes of those trees, `int64[roots, accepted, kept]`"""
    silent: FloatArray
    """`float64[roots, accepted]` [s]"""
    silent_drafted: IntArray
    """`int64[roots, accepted]`"""


def _contexts(corpus: TraceTable) -> IntArray:
    contexts: IntArray = corpus.roots - corpus.start[corpus.owner[corpus.roots]]
    return contexts


def _seconds(corpus: TraceTable, costs: RoundCosts, outcomes: Outcomes) -> FloatArray:
    """Times of rounds without the draft's first level, `float64[roots]`."""
    levels = np.concatenate([np.zeros((len(corpus.roots), 1), np.int64), outcomes.deeper_rows], axis=1)
    return costs.rounds_seconds(_contexts(corpus), levels, 1 + outcomes.drafted, outcomes.lookup_nodes)


def collect_choices(
    corpus: TraceTable,
    machines: Sequence[RoundCosts],
    grid: Collection[TreeParameters],
    progress: Callable[[], None] = lambda: None,
) -> list[Choices]:
    """Goes through a whole grid.

    Args:
        corpus: the texts.
        machines: what rounds take, on one machine or several: outcomes are the same on all of them.
        grid: the choices there are; plain decoding must be one of them.
        progress: called after each.

    Returns:
        The choices on each machine.

    Raises:
        UnmeasuredError: a round has more rows than the profile knows.
        UnrecordedError: the trace does not cover a tree.
    """
    most = max(parameters.max_depth for parameters in grid) + 1
    found = [_no_choices(len(corpus.roots), most) for _ in machines]
    for parameters in grid:
        outcomes = tabulate(corpus, parameters)
        for choices, costs in zip(found, machines, strict=True):
            _take_cheaper(choices, outcomes, _seconds(corpus, costs, outcomes))
        progress()
    return found


def _no_choices(roots: int, most: int) -> Choices:
    asking, silent = (roots, most, most), (roots, most)
    return Choices(
        np.full(asking, np.inf), np.zeros(asking, np.int64), np.full(silent, np.inf), np.zeros(silent, np.int64)
    )


def _take_cheaper(choices: Choices, outcomes: Outcomes, seconds: FloatArray) -> None:
    """Puts a choice in where it is cheaper than what there is."""
    for asked, best, drafted in (
        (True, choices.asking, choices.asking_drafted),
        (False, choices.silent, choices.silent_drafted),
    ):
        rows = np.flatnonzero(outcomes.asked == asked)
        where = (rows, outcomes.accepted[rows], outcomes.kept[rows])[: best.ndim]
        cheaper = seconds[rows] < best[where]
        where = tuple(part[cheaper] for part in where)
        best[where], drafted[where] = seconds[rows][cheaper], outcomes.drafted[rows][cheaper]


class _Player:
    """Plays all texts of a corpus side by side."""

    def __init__(self, corpus: TraceTable, costs: RoundCosts) -> None:
        self.corpus, self.costs = corpus, costs
        self.contexts = _contexts(corpus)
        self.lengths: IntArray = corpus.end - corpus.begin - 1  # roots of each text
        self.first: IntArray = np.cumsum(self.lengths) - self.lengths
        # At its first level the draft reads the prompt and the first token; a feature draft has no row for the first.
        self.owed: IntArray = corpus.begin - corpus.start + 1 - (corpus.header.draft_kind == "feature")

    def play(self, choose: Callable[[IntArray, IntArray], _Round]) -> Playback:
        """Plays by `choose(roots, owed)`, which decides about the roots of those numbers."""
        texts = len(self.lengths)
        seconds = np.zeros(texts)
        rounds, drafted, accepted, done = (np.zeros(texts, np.int64) for _ in range(4))
        owed = self.owed.copy()
        while len(active := np.flatnonzero(done < self.lengths)):
            roots = self.first[active] + done[active]
            choice = choose(roots, owed[active])
            first_level = self.costs.roots_seconds(self.contexts[roots], owed[active])
            committed = np.minimum(choice.accepted + 1, self.lengths[active] - done[active])
            seconds[active] += choice.seconds + np.where(choice.asked, first_level, 0.0)
            owed[active] = np.where(choice.asked, 0, owed[active]) + committed - choice.kept
            rounds[active] += 1
            drafted[active] += choice.drafted
            accepted[active] += choice.accepted
            done[active] += committed
        return Playback(seconds, rounds, drafted, accepted)


def play_static(corpus: TraceTable, machines: Sequence[RoundCosts], parameters: TreeParameters) -> list[Playback]:
    """All texts with the same parameters in every round, on each machine. Raises as `collect_choices` does."""
    outcomes = tabulate(corpus, parameters)
    return [_play_outcomes(corpus, costs, outcomes) for costs in machines]


def _play_outcomes(corpus: TraceTable, costs: RoundCosts, outcomes: Outcomes) -> Playback:
    seconds = _seconds(corpus, costs, outcomes)

    def choose(roots: IntArray, owed: IntArray) -> _Round:
        return _Round(
            seconds[roots],
            outcomes.accepted[roots],
            outcomes.drafted[roots],
            outcomes.kept[roots],
            outcomes.asked[roots].astype(np.int64),
        )

    return _Player(corpus, costs).play(choose)


def _best(asking: FloatArray, silent: FloatArray, choices: Choices, roots: IntArray) -> _Round:
    """The least of `asking[n, accepted, kept]` and `silent[n, accepted]`, as what it is among `choices`."""
    rows, kept_most = np.arange(len(roots)), asking.shape[2]
    flat = asking.reshape(len(roots), -1)
    best_asking, best_silent = flat.argmin(axis=1), silent.argmin(axis=1)
    asked = flat[rows, best_asking] < silent[rows, best_silent]
    accepted, kept = np.divmod(best_asking, kept_most)
    return _Round(
        np.where(asked, choices.asking[roots, accepted, kept], choices.silent[roots, best_silent]),
        np.where(asked, accepted, best_silent),
        np.where(asked, choices.asking_drafted[roots, accepted, kept], choices.silent_drafted[roots, best_silent]),
        np.where(asked, kept, 0),
        asked.astype(np.int64),
    )


def myopic(corpus: TraceTable, costs: RoundCosts, choices: Choices) -> Playback:
    """Each round the most tokens per time."""
    player = _Player(corpus, costs)
    left = player.lengths[corpus.owner[corpus.roots]] - (corpus.roots - corpus.begin[corpus.owner[corpus.roots]])
    accepted = np.arange(choices.silent.shape[1])

    def choose(roots: IntArray, owed: IntArray) -> _Round:
        tokens = np.minimum(accepted + 1, left[roots][:, None])
        first_level = costs.roots_seconds(player.contexts[roots], owed)
        asking = (choices.asking[roots] + first_level[:, None, None]) / tokens[:, :, None]
        return _best(asking, choices.silent[roots] / tokens, choices, roots)

    return player.play(choose)


class _Future:
    """Least time from a root to the end of its text, by what is owed: backwards from the ends."""

    def __init__(self, player: _Player, choices: Choices) -> None:
        self.player, self.choices = player, choices
        self.most = player.costs.root.most  # owed tokens told apart
        steps, accepted = int(player.lengths.max()), np.arange(choices.silent.shape[1])
        # Past its end a text takes no more time.
        self.least = np.zeros((len(player.lengths), steps + len(accepted) + 1, self.most + 1))
        self.after = accepted + 1
        self.left_owed = np.minimum(self.after[:, None] - accepted[None, :], self.most).clip(min=0)
        for step in range(steps - 1, -1, -1):
            texts = np.flatnonzero(player.lengths > step)
            for owed in range(1, self.most + 1):
                asking, silent = self.costs(texts, np.full(len(texts), step), np.full(len(texts), owed))
                self.least[texts, step, owed] = np.minimum(asking.min(axis=(1, 2)), silent.min(axis=1))

    def costs(self, texts: IntArray, steps: IntArray, owed: IntArray) -> tuple[FloatArray, FloatArray]:
        """Time to the end by each choice, `[n, accepted, kept]` and `[n, accepted]`."""
        player, choices, owed = self.player, self.choices, np.minimum(owed, self.most)
        roots, following = player.first[texts] + steps, steps[:, None] + self.after
        first_level = player.costs.roots_seconds(player.contexts[roots], owed)
        future = self.least[texts[:, None, None], following[:, :, None], self.left_owed]
        asking = choices.asking[roots] + first_level[:, None, None] + future
        owing = np.minimum(owed[:, None] + self.after, self.most)
        return asking, choices.silent[roots] + self.least[texts[:, None], following, owing]


def clairvoyant(corpus: TraceTable, costs: RoundCosts, choices: Choices) -> Playback:
    """The least time to the end of every text."""
    player = _Player(corpus, costs)
    future = _Future(player, choices)
    owner = corpus.owner[corpus.roots]

    def choose(roots: IntArray, owed: IntArray) -> _Round:
        texts = owner[roots]
        asking, silent = future.costs(texts, roots - player.first[texts], owed)
        return _best(asking, silent, choices, roots)

    return player.play(choose)

"""The account of a round's time: whole rounds of a given size, part by part, timed or under the profiler.

The trees are forced into sizes as in `measure`; a controller is asked before every round all the same, and its choice
is not used. Rounds that are timed and rounds that are profiled are never the same: a profiler costs time.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from specgym.controllers.evaluation.profiling.operators import record_operators, seconds_by_group
from specgym.env.common.errors import ParameterError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts import LookupDraft
from specgym.env.latency.measure import longest_text, shape
from specgym.env.latency.timing import FilledLookup, TimedDraft
from specgym.env.tree.growth import Expand
from specgym.env.tree.observation import Observation
from specgym.env.tree.parameters import PLAIN, TreeParameters
from specgym.env.tree.rounds import Request, RoundOutcome
from specgym.env.tree.tree import TokenTree

WORKING = ("draft", "verify", "commit")
"""the parts of a round in which operators run"""
PARTS = (*WORKING, "controller", "rest")
"""Parts of a round: the draft levels, from the first one's beginning to the last one's end; the verification, the
choice of tokens included; the commit; observing and choosing; and everything else, such as what is kept of a tree."""

_EXPANDED = 4  # most nodes expanded in a level
_PASSES = 3  # rounds of each size in a visit that are timed
_PROFILED = 4  # rounds of each size in a visit that are profiled
_WARM = 1  # rounds of each size before those


class Chooser(Protocol):
    """Who would choose the parameters of a round."""

    def reset(self) -> None:
        """A new request begins."""

    def act(self, observation: Observation) -> object:
        """Chooses."""


@dataclass(frozen=True)
class AccountGrid:
    """What to account for.

    Raises:
        ParameterError: rows or contexts that are not positive, come twice or descend.
    """

    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """rows of a verification, ascending; 1 is a plain step"""
    contexts: tuple[int, ...] = (128, 512, 1024)
    """lengths of the prompts, ascending [tokens]"""

    def __post_init__(self) -> None:
        for name in ("rows", "contexts"):
            values = getattr(self, name)
            if not values or values[0] < 1 or any(b <= a for a, b in itertools.pairwise(values)):
                raise ParameterError(f"{name} must be positive and ascend; got {values}.")

    @property
    def room(self) -> int:
        """Most tokens that the rounds of a visit commit [tokens]."""
        return (_WARM + max(_PASSES, _PROFILED)) * sum(tree_of(rows).max_depth + 1 for rows in self.rows) + 1

    def fitting(self, longest: int) -> AccountGrid:
        """This grid with those contexts only that leave room in a text of at most `longest` tokens.

        Raises:
            ParameterError: none does.
        """
        fitting = tuple(context for context in self.contexts if context + self.room <= longest)
        if not fitting:
            self.check_fits(longest)
        return replace(self, contexts=fitting)

    def check_fits(self, longest: int) -> None:
        """Refuses contexts that leave no room in a text of at most `longest` tokens. Raises `ParameterError`."""
        if self.contexts[-1] + self.room > longest:
            most = longest - self.room
            advice = f"Name shorter ones, the last one {most} or less" if most > 0 else "Name fewer or smaller rows"
            raise ParameterError(
                f"contexts must leave {self.room} tokens of the {longest} that this pair reads; got {self.contexts}. "
                f"{advice}."
            )


def tree_of(rows: int) -> TreeParameters:
    """A tree of exactly that many rows, the root included, without a level that is not needed."""
    if rows == 1:
        return PLAIN
    made = shape(min(_EXPANDED, rows - 1), rows - 1)
    return replace(made, base_depth=made.max_depth - 1, max_depth=made.max_depth - 1)


@dataclass(frozen=True)
class TimedRound:
    """A round of `context` and `rows` as asked for."""

    context: int
    """length of the prompt [tokens]"""
    rows: int
    """rows verified"""
    position: int
    """tokens in the target's cache before it [tokens]"""
    parts: dict[str, float]
    """wall time by `PARTS` [s]"""
    levels: tuple[tuple[int, float], ...]
    """rows and time of each draft level; rows are 0 where only lookup was asked [rows, s]"""

    @property
    def seconds(self) -> float:
        """The whole round [s]."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class ProfiledRound:
    """A round under the profiler."""

    context: int
    rows: int
    seconds: float
    """of the parts in which operators run, the profiler's cost included [s]"""
    groups: dict[str, dict[str, float]]
    """seconds by group of operators, of each part of `WORKING`"""
    unknown: dict[str, float] = field(default_factory=dict)
    """seconds of operators of no group, by name"""


class Accountant:
    """Runs the rounds of one pair.

    Args:
        decoder: of the pair; a `TimedDraft` takes the place of its draft while rounds run, filled up if that is lookup.
        text: what prompts are cut from, longer than the longest context [token ids].
        grid: what to account for.
        chooser: who is asked before every round.
        seed: of the order and of the prompts.

    Raises:
        ParameterError: contexts that the pair cannot read, or a text that is too short for them.
    """

    def __init__(
        self, decoder: LiveDecoder, text: Sequence[int], grid: AccountGrid, chooser: Chooser, seed: int = 0
    ) -> None:
        grid.check_fits(longest_text(decoder))
        if len(text) <= grid.contexts[-1]:
            raise ParameterError(f"Expected a text of more than {grid.contexts[-1]} tokens; got {len(text)}.")
        self.decoder, self.text, self.grid, self.chooser = decoder, text, grid, chooser
        self.order, self.trees = random.Random(seed), {rows: tree_of(rows) for rows in grid.rows}
        self.draft = _NotedDraft(FilledLookup() if isinstance(decoder.draft, LookupDraft) else decoder.draft)

    def timed(self, context: int) -> Iterator[TimedRound]:
        """Times rounds of all sizes after a prompt, in random order."""
        for rows in self._visit(context, _PASSES):
            position, began = len(self.decoder.tokens) - 1, time.perf_counter()
            self.chooser.act(self.decoder.observe())
            chosen = time.perf_counter()
            outcome = self.decoder.round(self.trees[rows])
            ended = time.perf_counter()
            if outcome.drafted + 1 == rows:  # or the text had no room left for the tree
                stretches = self._stretches(outcome)
                parts = {name: end - begin for name, (begin, end) in stretches.items()}
                parts |= {"controller": chosen - began, "rest": ended - chosen - sum(parts.values())}
                levels = tuple((level.rows, level.seconds) for level in self.draft.levels)
                yield TimedRound(context, rows, position, parts, levels)

    def profiled(self, context: int) -> Iterator[ProfiledRound]:
        """Runs rounds of all sizes after a prompt under the profiler, in random order."""
        for rows in self._visit(context, _PROFILED):
            self.chooser.act(self.decoder.observe())
            play = partial(self.decoder.round, self.trees[rows])
            outcome, operators = record_operators(play, self.decoder.target.device)
            if outcome.drafted + 1 == rows:
                stretches = self._stretches(outcome)
                found = {name: seconds_by_group(operators, *stretch) for name, stretch in stretches.items()}
                yield ProfiledRound(
                    context,
                    rows,
                    sum(end - begin for begin, end in stretches.values()),
                    {name: groups for name, (groups, _) in found.items()},
                    _added(unknown for _, unknown in found.values()),
                )

    def _visit(self, context: int, passes: int) -> Iterator[int]:
        """Reads a prompt, warms up, and gives the sizes of the rounds that are to be run, one after the other."""
        decoder, before = self.decoder, self.decoder.merged
        begin = self.order.randrange(len(self.text) - context)
        prompt = tuple(self.text[begin : begin + context])
        decoder.merged = self.draft
        try:
            self.chooser.reset()
            # The text has no limit of its own: one that is met would end the visit, nothing else.
            decoder.start(Request(prompt, decoder.target.context_limit, ignore_end=True))
            sizes = self.grid.rows
            for rows in sizes * _WARM:  # kernels of every size are chosen, and the draft has read the prompt
                decoder.round(self.trees[rows])
            for rows in itertools.chain(*(self.order.sample(sizes, len(sizes)) for _ in range(passes))):
                if not decoder.under_way:
                    return
                yield rows
        finally:
            decoder.merged = before

    def _stretches(self, outcome: RoundOutcome) -> dict[str, tuple[float, float]]:
        """Beginning and end of each part in which operators run, by the clock [s]."""
        began, levels, seconds = self.draft.began, self.draft.levels, outcome.seconds
        drafted = (levels[0].began, levels[-1].began + levels[-1].seconds) if levels else (began, began)
        verify = began + seconds.draft
        commit = verify + seconds.verify
        return dict(zip(WORKING, (drafted, (verify, commit), (commit, commit + seconds.commit)), strict=True))


class _NotedDraft(TimedDraft):
    """Notes when a round began, too."""

    began = 0.0

    def expander(self, parameters: TreeParameters) -> Expand[TokenTree]:
        """See `MergedDraft.expander`."""
        expand = super().expander(parameters)
        self.began = time.perf_counter()  # the decoder starts its watch next
        return expand


def _added(accounts: Iterable[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for name, seconds in itertools.chain(*(account.items() for account in accounts)):
        total[name] = total.get(name, 0.0) + seconds
    return total

"""Runs rounds of given sizes, timed part by part or recorded operator by operator.

The trees are forced into sizes as in `measure`. A controller still acts before every round, and its choice is ignored.
No round is both timed and recorded, since a profiler costs time.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from specgym.controllers.controller import Controller
from specgym.controllers.evaluation.profiling.operators import record_operators, seconds_by_group
from specgym.env.common.errors import ParameterError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts import LookupDraft
from specgym.env.latency.measure import FilledLookup, TimedDraft, longest_text, shape
from specgym.env.tree.growth import Expand
from specgym.env.tree.parameters import PLAIN, TreeParameters
from specgym.env.tree.rounds import Request, RoundOutcome
from specgym.env.tree.tree import TokenTree

WORKING = ("draft", "verify", "commit")
"""the parts of a round in which operators run"""
PARTS = (*WORKING, "controller", "rest")
"""Parts of a round. `draft` lasts from the start of the first draft level to the end of the last one. `verify` includes
the choice of tokens. `controller` is observing and choosing, `rest` everything else, such as building the tree."""

_EXPANDED = 4  # most nodes expanded in a level
_TIMED = 3  # timed rounds of each size in a visit
_RECORDED = 4  # recorded rounds of each size in a visit
_WARM = 1  # rounds of each size before those


@dataclass(frozen=True)
class ProfileGrid:
    """Sizes of the rounds to profile.

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
        return (_WARM + max(_TIMED, _RECORDED)) * sum(tree_of(rows).max_depth + 1 for rows in self.rows) + 1

    def fitting(self, longest: int) -> ProfileGrid:
        """Returns this grid with only the contexts that leave room in a text of at most `longest` tokens.

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
    """Returns a tree of exactly `rows` rows, the root included, with as few levels as possible."""
    if rows == 1:
        return PLAIN
    tree = shape(min(_EXPANDED, rows - 1), rows - 1)
    return replace(tree, base_depth=tree.max_depth - 1, max_depth=tree.max_depth - 1)


@dataclass(frozen=True)
class TimedRound:
    """A timed round."""

    context: int
    """length of the prompt [tokens]"""
    rows: int
    """rows verified"""
    position: int
    """tokens in the target's cache when it began [tokens]"""
    parts: dict[str, float]
    """wall time by `PARTS` [s]"""
    levels: tuple[tuple[int, float], ...]
    """rows and time of each draft level; 0 rows for a level of prompt lookup [rows, s]"""

    @property
    def seconds(self) -> float:
        """Time of the whole round [s]."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class RecordedRound:
    """A round under the profiler."""

    context: int
    """length of the prompt [tokens]"""
    rows: int
    """rows verified"""
    seconds: float
    """time of the parts in which operators run, the profiler's cost included [s]"""
    groups: dict[str, dict[str, float]]
    """seconds by group of operators, of each part in `WORKING`"""
    unknown: dict[str, float] = field(default_factory=dict)
    """seconds by name of the operators without a group"""


class RoundProfiler:
    """Profiles the rounds of one pair.

    Args:
        decoder: the pair's decoder. Its draft is replaced by a `TimedDraft` while rounds run, and prompt lookup by one
            that always finds enough nodes.
        text: token ids that prompts are cut from, longer than the longest context.
        grid: the sizes.
        controller: acts before every round.

    Raises:
        ParameterError: contexts that the pair cannot read, or a text that is too short for them.
    """

    def __init__(self, decoder: LiveDecoder, text: Sequence[int], grid: ProfileGrid, controller: Controller) -> None:
        grid.check_fits(longest_text(decoder))
        if len(text) <= grid.contexts[-1]:
            raise ParameterError(f"Expected a text of more than {grid.contexts[-1]} tokens; got {len(text)}.")
        self.decoder, self.text, self.grid, self.controller = decoder, text, grid, controller
        self.order, self.trees = random.Random(0), {rows: tree_of(rows) for rows in grid.rows}
        self.draft = _ClockedDraft(FilledLookup() if isinstance(decoder.draft, LookupDraft) else decoder.draft)

    def timed(self, context: int) -> Iterator[TimedRound]:
        """Times rounds of all sizes after a prompt, in random order."""
        for rows in self._visit(context, _TIMED):
            position, began = len(self.decoder.tokens) - 1, time.perf_counter()
            self.controller.act(self.decoder.observe())
            chosen = time.perf_counter()
            outcome = self.decoder.round(self.trees[rows])
            ended = time.perf_counter()
            if outcome.drafted + 1 == rows:  # else the text had no room left for the tree
                parts = {name: end - begin for name, (begin, end) in self._intervals(outcome).items()}
                parts |= {"controller": chosen - began, "rest": ended - chosen - sum(parts.values())}
                levels = tuple((level.rows, level.seconds) for level in self.draft.levels)
                yield TimedRound(context, rows, position, parts, levels)

    def recorded(self, context: int) -> Iterator[RecordedRound]:
        """Runs rounds of all sizes after a prompt under the profiler, in random order."""
        for rows in self._visit(context, _RECORDED):
            self.controller.act(self.decoder.observe())
            run = partial(self.decoder.round, self.trees[rows])
            outcome, operators = record_operators(run, self.decoder.target.device)
            if outcome.drafted + 1 == rows:
                intervals = self._intervals(outcome)
                seconds = sum(end - begin for begin, end in intervals.values())
                groups, unknown = {}, dict[str, float]()
                for name, interval in intervals.items():
                    groups[name], others = seconds_by_group(operators, *interval)
                    unknown |= {other: unknown.get(other, 0.0) + value for other, value in others.items()}
                yield RecordedRound(context, rows, seconds, groups, unknown)

    def _visit(self, context: int, passes: int) -> Iterator[int]:
        """Reads a prompt, warms up, and yields the rows of each round to run."""
        decoder, before = self.decoder, self.decoder.merged
        begin = self.order.randrange(len(self.text) - context)
        prompt = tuple(self.text[begin : begin + context])
        decoder.merged = self.draft
        try:
            self.controller.reset()
            # The text's only limit is the context: any other would merely end the visit early.
            decoder.start(Request(prompt, decoder.target.context_limit, ignore_end=True))
            sizes = self.grid.rows
            for rows in sizes * _WARM:  # chooses the kernels of every size, and lets the draft read the prompt
                decoder.round(self.trees[rows])
            for rows in itertools.chain(*(self.order.sample(sizes, len(sizes)) for _ in range(passes))):
                if not decoder.under_way:
                    return
                yield rows
        finally:
            decoder.merged = before

    def _intervals(self, outcome: RoundOutcome) -> dict[str, tuple[float, float]]:
        """Returns start and end of each part in `WORKING`, by the clock [s]."""
        began, levels, seconds = self.draft.began, self.draft.levels, outcome.seconds
        drafted = (levels[0].began, levels[-1].began + levels[-1].seconds) if levels else (began, began)
        verify = began + seconds.draft
        commit = verify + seconds.verify
        return {"draft": drafted, "verify": (verify, commit), "commit": (commit, commit + seconds.commit)}


class _ClockedDraft(TimedDraft):
    """A timed draft that also notes when the round began."""

    began = 0.0

    def expander(self, parameters: TreeParameters) -> Expand[TokenTree]:
        """See `MergedDraft.expander`."""
        expand = super().expander(parameters)
        self.began = time.perf_counter()  # the decoder starts its watch next
        return expand

"""Measuring rounds: real ones of a `LiveDecoder`, whose trees are forced into shapes that cover all rows asked for.

A level is timed directly, from its call of the expander to the next one, so that its part of growing the tree is in it.
The other way, differences between rounds of different depth, would need no hold on the decoder, but the noise of two
whole rounds, each many times as long as a level, would end up in one level. What is left of a round, the sum of its
stages less its levels and its verification, is its overhead. Nothing is counted twice and nothing is left out.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from specgym.env.common.errors import ParameterError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts import LookupDraft
from specgym.env.latency.fit import Knots, Sample, at_one_speed
from specgym.env.latency.timing import FilledLookup, TimedDraft
from specgym.env.tree.parameters import PLAIN, TreeParameters
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings

_ROOM = 128  # tokens left for a visit's rounds; a visit that needs more ends early
_APART = 64  # tokens between two contexts; the visits of closer ones could hardly be told apart
_BRANCH = 4  # most children of a node in a forced tree
_DEEPEST = 8  # levels of a forced tree, where that is enough
_LOOKUPS = 2  # rounds of prompt lookup in a visit
_PLAINS = 4  # plain rounds in a visit, beside those that make the draft owe tokens

TEMPERATURE = 1.0
"""of the sampled measurements"""


def ladder(most: int) -> tuple[int, ...]:
    """1, 2, 3, 4, 6, 8, 12, 16, 24 ... and `most`: rows to measure, about evenly spaced in proportion."""
    steps = {1, most} | {step for power in range(1, most.bit_length()) for step in (2**power, 3 * 2 ** (power - 1))}
    return tuple(sorted(step for step in steps if step <= most))


@dataclass(frozen=True)
class Grid:
    """What to measure.

    Raises:
        ParameterError: a number of rows that is not positive, or contexts that are too short, too close or descend.
    """

    contexts: tuple[int, ...] = (128, 512, 1024, 1792)
    """lengths of the prompts, ascending [tokens]"""
    most_owed: int = 16
    """most tokens owed at the draft's first level [rows]"""
    most_expanded: int = 64
    """most nodes expanded in a level [rows]"""
    most_verified: int = 128
    """most rows of a verification [rows]"""

    def __post_init__(self) -> None:
        for name, least in (("most_owed", 1), ("most_expanded", 1), ("most_verified", 3)):
            if getattr(self, name) < least:
                raise ParameterError(f"{name} must be {least} or more; got {getattr(self, name)}.")
        near = any(b - a < _APART for a, b in itertools.pairwise(self.contexts))
        if near or not self.contexts or self.contexts[0] < 1 or self.contexts[-1] <= self.most_owed:
            raise ParameterError(
                f"contexts must ascend by {_APART} tokens or more, the last one past most_owed={self.most_owed}; "
                f"got {self.contexts}."
            )

    def knots(self, model: bool) -> Knots:
        """The rows of the fit, for a pair with a draft model or without one."""
        if not model:
            return Knots((), (), ladder(self.most_verified))
        # What is owed comes as it comes, where rounds commit much.
        return Knots(tuple(range(1, self.most_owed + 1)), ladder(self.most_expanded), ladder(self.most_verified))

    def fitting(self, longest: int) -> Grid:
        """This grid with those contexts only that leave room in a text of at most `longest` tokens.

        Raises:
            ParameterError: none does.
        """
        fitting = tuple(context for context in self.contexts if context + _ROOM <= longest)
        if not fitting:
            self.check_fits(longest)
        return replace(self, contexts=fitting)

    def check_fits(self, longest: int) -> None:
        """Refuses contexts that leave no room in a text of at most `longest` tokens. Raises `ParameterError`."""
        if self.contexts[-1] + _ROOM > longest:
            raise ParameterError(
                f"contexts must leave {_ROOM} tokens of the {longest} that this pair reads; got {self.contexts}. "
                f"Name shorter ones, the last one {longest - _ROOM} or less."
            )


def longest_text(decoder: LiveDecoder) -> int:
    """What both models of a pair can read [tokens]."""
    limit, target = decoder.draft.context_limit, decoder.target.context_limit
    return target if limit is None else min(target, limit)


def shape(expanded: int, nodes: int) -> TreeParameters:
    """A tree of exactly `nodes` nodes, if the draft offers enough, in whose growth levels of `expanded` nodes occur.

    The levels widen by up to four children a node, and the widest is repeated until there are nodes enough.
    """
    branch = min(expanded, _BRANCH)
    width, depth, grown = 1, 0, 0
    while width < expanded or grown < nodes or depth == 0:
        grown += width * branch
        width, depth = min(width * branch, expanded), depth + 1
    depth += 1  # the widest level is expanded too
    return TreeParameters(
        depth, depth, branch, branch, branch, early_stop=0.0, frontier_width=expanded, node_budget=nodes
    )


def plan(grid: Grid, order: random.Random) -> list[TreeParameters]:
    """Trees that cover every number of expanded and of verified rows at least once, paired at random."""
    widths, numbers = ladder(grid.most_expanded), [rows - 1 for rows in ladder(grid.most_verified)[1:]]
    shapes: list[TreeParameters] = []
    for nodes in numbers:
        fitting = [width for width in widths if shape(width, nodes).max_depth <= _DEEPEST]
        shapes.append(shape(order.choice(fitting or widths[-1:]), nodes))
    for width in sorted(set(widths) - {made.frontier_width for made in shapes}):
        fitting = [nodes for nodes in numbers if shape(width, nodes).max_depth <= _DEEPEST]
        shapes.append(shape(width, order.choice(fitting or numbers[:1])))
    return shapes


def measure(
    decoder: LiveDecoder,
    text: Sequence[int],
    grid: Grid,
    *,
    repeats: int = 3,
    seconds: float = 120.0,
    seed: int = 0,
    progress: Callable[[str], None] = lambda visited: None,
    between: Callable[[int], None] = lambda left: None,
) -> list[Sample]:
    """Measures all cells of `grid`, greedy and sampled, in random order.

    A visit reads a prompt and then runs rounds that cover every number of rows once, in an order of its own; the visits
    are in random order too, so that a slow spell of the machine falls on all cells alike. What the prompt's own rounds
    take is not used, but for the draft's reading of the prompt.

    Args:
        decoder: of the pair; a `TimedDraft` takes the place of its draft meanwhile, filled up if that is lookup.
        text: what prompts are cut from, longer than the longest context [token ids].
        grid: what to measure.
        repeats: visits of every context, greedy and sampled.
        seconds: after this time no further visit begins, once all contexts were visited [s].
        seed: of the order and of the sampling.
        progress: called after every visit.
        between: called after every visit too, with the number of those that are left, and free to use the decoder.

    Raises:
        ParameterError: contexts that the pair cannot read, or a text that is too short for them.
    """
    grid.check_fits(longest_text(decoder))
    if len(text) <= grid.contexts[-1]:
        raise ParameterError(f"Expected a text of more than {grid.contexts[-1]} tokens; got {len(text)}.")
    order, began = random.Random(seed), time.monotonic()
    draft = TimedDraft(FilledLookup() if isinstance(decoder.draft, LookupDraft) else decoder.draft)
    kinds = [(context, greedy) for context in grid.contexts for greedy in (True, False)]
    visits = [(repeat, kind) for repeat in range(repeats) for kind in order.sample(kinds, len(kinds))]
    found: list[list[Sample]] = []
    for number, (repeat, (context, greedy)) in enumerate(visits, start=1):
        if repeat == 0 or time.monotonic() - began < seconds:
            begin = order.randrange(len(text) - context)
            with _in_place_of_its_draft(decoder, draft):
                visit = _Visit(decoder, draft, grid, order, greedy)
                found.append(visit.run(tuple(text[begin : begin + context])))
        progress(f"{'greedy' if greedy else 'sampled'}, {context} tokens")
        between(len(visits) - number)
    return at_one_speed(found)


@contextmanager
def _in_place_of_its_draft(decoder: LiveDecoder, draft: TimedDraft) -> Iterator[None]:
    before, decoder.merged = decoder.merged, draft
    try:
        yield
    finally:
        decoder.merged = before


class _Visit:
    """One prompt and the rounds after it."""

    def __init__(self, decoder: LiveDecoder, draft: TimedDraft, grid: Grid, order: random.Random, greedy: bool) -> None:
        self.decoder, self.draft, self.grid, self.order, self.greedy = decoder, draft, grid, order, greedy
        self.samples: list[Sample] = []

    def run(self, prompt: tuple[int, ...]) -> list[Sample]:
        """Reads the prompt and runs all rounds, or as many as the context has room for."""
        self.bucket = len(prompt)
        sampling = SamplingSettings(0.0 if self.greedy else TEMPERATURE, seed=self.order.getrandbits(32))
        most = self.decoder.target.context_limit  # a limit that is met ends the visit, nothing else
        self.decoder.start(Request(prompt, most, sampling, ignore_end=True))
        self._warm_up()
        for parameters, owed in self._rounds():
            while self.draft.model and self.draft.model.owed < owed and self.decoder.under_way:
                self._plain()
            if not self.decoder.under_way:
                break
            if parameters.speculates:
                self._speculate(parameters)
            else:
                self._plain()
        return self.samples

    def _rounds(self) -> Iterator[tuple[TreeParameters, int]]:
        """What to choose, and how many tokens the draft shall owe before that."""
        owed = ladder(self.grid.most_owed)
        lookup = replace(shape(_BRANCH, 2 * _BRANCH), source="lookup")
        chosen = [*plan(self.grid, self.order), *[lookup] * _LOOKUPS, *[PLAIN] * _PLAINS]
        debts = [*owed, *[1] * (len(chosen) - len(owed))]
        chosen += [shape(1, 1)] * (len(owed) - len(chosen))
        self.order.shuffle(chosen)
        self.order.shuffle(debts)
        return zip(chosen, debts, strict=True)

    def _warm_up(self) -> None:
        """The first forwards of a prompt are not like later ones; but nothing else has the draft read as much."""
        context = len(self.decoder.tokens) - 1
        if self.draft.model:
            self.decoder.round(shape(1, 1))
            level = self.draft.levels[0]
            self._note("prompt", level.rows, level.seconds, context)
        if self.decoder.under_way:
            self.decoder.round(PLAIN)

    def _plain(self) -> None:
        context = len(self.decoder.tokens) - 1
        seconds = self.decoder.round(PLAIN).seconds
        self._note("plain", 1, seconds.total, context)
        self._note("verify", 1, seconds.verify, context)

    def _speculate(self, parameters: TreeParameters) -> None:
        context = len(self.decoder.tokens) - 1
        outcome, levels = self.decoder.round(parameters), self.draft.levels
        seconds = outcome.seconds
        if outcome.drafted:
            self._note("verify", outcome.drafted + 1, seconds.verify, context)
        drafting = sum(level.seconds for level in levels)
        self._note("overhead", 1, seconds.total - seconds.verify - drafting, context)
        for depth, level in enumerate(levels):
            if level.rows:
                self._note("level" if depth else "root", level.rows, level.seconds, context)
            elif level.lookup_nodes:
                self._note("lookup", 1, level.seconds / level.lookup_nodes, context)

    def _note(self, stage: str, rows: int, seconds: float, context: int) -> None:
        self.samples.append(Sample(self.greedy, stage, self.bucket, context, rows, seconds))

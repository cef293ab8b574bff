"""Measures latency on real rounds of a `LiveDecoder`, with trees forced into shapes that cover all numbers of rows.

Each level is timed directly, from its call of the expander to the next call, its share of growing the tree included.
Differences between rounds of different depth would instead put the noise of two long rounds into one short level. The
rest of a round, without its levels and its verification, is its overhead. Nothing is counted twice or left out.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import ParameterError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts import LookupDraft, MergedDraft
from specgym.env.latency.fit import Knots, Sample, at_one_speed
from specgym.env.tree.growth import Candidates, Expand
from specgym.env.tree.parameters import PLAIN, TreeParameters
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings
from specgym.env.tree.tree import TokenTree

_ROOM = 128  # tokens reserved for a visit's rounds; a visit that needs more ends early
_APART = 64  # least tokens between two contexts, so that visits differ
_BRANCH = 4  # most children of a node in a forced tree
_DEEPEST = 8  # preferred maximum depth of a forced tree
_LOOKUPS = 2  # rounds of prompt lookup in a visit
_UNLIKELY = -20.0  # log-probability of an arbitrary token
_PLAINS = 4  # plain rounds in a visit, besides those that make the draft owe tokens

TEMPERATURE = 1.0
"""temperature of the sampled measurements"""


def ladder(most: int) -> tuple[int, ...]:
    """Numbers of rows to measure: 1, 2, 3, 4, 6, 8, 12, 16, 24 ... and `most`."""
    steps = {1, most} | {step for power in range(1, most.bit_length()) for step in (2**power, 3 * 2 ** (power - 1))}
    return tuple(sorted(step for step in steps if step <= most))


@dataclass(frozen=True)
class Grid:
    """The contexts and rows to measure.

    Raises:
        ParameterError: a number of rows is too small, or the contexts are too short, too close or descend.
    """

    contexts: tuple[int, ...] = (128, 512, 1024, 1792)
    """lengths of the prompts, ascending [tokens]"""
    most_owed: int = 16
    """largest number of tokens owed at the draft's first level [rows]"""
    most_expanded: int = 64
    """largest number of nodes expanded in a level [rows]"""
    most_verified: int = 128
    """largest number of rows of a verification [rows]"""

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
        # Any number of tokens can be owed, so each is a knot.
        owed, expanded = (range(1, self.most_owed + 1), ladder(self.most_expanded)) if model else ((), ())
        return {"root": owed, "level": expanded, "verify": ladder(self.most_verified)}

    def fitting(self, longest: int) -> Grid:
        """This grid with only the contexts that leave room in a text of at most `longest` tokens.

        Raises:
            ParameterError: no context does.
        """
        if self.contexts[0] + _ROOM > longest:
            self.check_fits(longest)
        return replace(self, contexts=tuple(context for context in self.contexts if context + _ROOM <= longest))

    def check_fits(self, longest: int) -> None:
        """Refuses contexts that leave no room in a text of at most `longest` tokens. Raises `ParameterError`."""
        if self.contexts[-1] + _ROOM > longest:
            raise ParameterError(
                f"contexts must leave {_ROOM} tokens of the {longest} that this pair reads; got {self.contexts}. "
                f"Name shorter ones, the last one {longest - _ROOM} or less."
            )


@dataclass(slots=True)
class Level:
    """One call of the expander."""

    began: float
    """start by the performance counter [s]"""
    rows: int = 0
    """rows of the draft's forward; 0 without a forward"""
    lookup_nodes: int = 0
    """nodes that prompt lookup expanded"""
    seconds: float = 0.0
    """time until the next call, or until the end of the last call [s]"""


class TimedDraft(MergedDraft):
    """Records the levels of the last round.

    Attributes:
        levels: one entry for each call of the expander, the root's first; empty after a plain round.
    """

    levels: list[Level]

    def expander(self, parameters: TreeParameters) -> Expand[TokenTree]:
        """See `MergedDraft.expander`."""
        self.levels = []
        expand = super().expander(parameters)

        def timed(tree: TokenTree, nodes: IntArray, k: int) -> Candidates:
            level = Level(time.perf_counter())
            if self.levels:
                self.levels[-1].seconds = level.began - self.levels[-1].began
            self.levels.append(level)
            forwards, looked_up = len(self.level_rows), self.lookup_nodes
            candidates = expand(tree, nodes, k)
            level.rows = sum(self.level_rows[forwards:])
            level.lookup_nodes = self.lookup_nodes - looked_up
            level.seconds = time.perf_counter() - level.began
            return candidates

        return timed


class FilledLookup(LookupDraft):
    """Prompt lookup that always proposes k tokens, arbitrary ones if necessary.

    Plain lookup cannot fill a tree of a given size. The cost of a verification does not depend on its tokens.
    """

    def expand(self, tree: TokenTree, nodes: IntArray, k: int, entropy: bool = False) -> Candidates:
        """See `LookupDraft.expand`."""
        candidates = super().expand(tree, nodes, k, entropy)
        log_probs = np.maximum(candidates.log_probs, _UNLIKELY)
        return replace(candidates, log_probs=log_probs, from_lookup=np.ones(log_probs.shape, np.bool_))


def longest_text(decoder: LiveDecoder) -> int:
    """The longest text that both models of a pair can read [tokens]."""
    limit, target = decoder.draft.context_limit, decoder.target.context_limit
    return target if limit is None else min(target, limit)


def shape(expanded: int, nodes: int) -> TreeParameters:
    """Makes a tree of exactly `nodes` nodes that expands levels of `expanded` nodes, if the draft proposes enough.

    Levels widen by up to four children a node. The widest level repeats until there are enough nodes.
    """
    branch = min(expanded, _BRANCH)
    width, depth, grown = 1, 0, 0
    while width < expanded or grown < nodes or depth == 0:
        grown += width * branch
        width, depth = min(width * branch, expanded), depth + 1
    depth += 1  # the widest level is expanded too
    return TreeParameters(depth, depth, branch, branch, branch, frontier_width=expanded, node_budget=nodes)


def plan(grid: Grid, order: random.Random) -> list[TreeParameters]:
    """Plans trees that cover every number of expanded and of verified rows at least once, paired at random."""
    widths, numbers = ladder(grid.most_expanded), [rows - 1 for rows in ladder(grid.most_verified)[1:]]
    shapes: list[TreeParameters] = []
    for nodes in numbers:
        fitting = [width for width in widths if shape(width, nodes).max_depth <= _DEEPEST]
        shapes.append(shape(order.choice(fitting or widths[-1:]), nodes))
    for width in sorted(set(widths) - {tree.frontier_width for tree in shapes}):
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

    A visit reads a prompt and then runs rounds that cover every number of rows once. Rounds and visits are in random
    order, so that a slow phase of the machine affects all cells alike. The first rounds after a prompt only warm up,
    except that the draft's reading of the prompt is measured.

    Args:
        decoder: a decoder of the pair. During visits a `TimedDraft` replaces its draft, and `FilledLookup` prompt
            lookup.
        text: the source of prompts, longer than the longest context [token ids].
        grid: contexts and rows to measure.
        repeats: visits of each context, greedy and sampled.
        seconds: time limit: no visit begins later, once all contexts were visited [s].
        seed: seed of the order and of the sampling.
        progress: called after every visit, with its description.
        between: called after every visit, with the number of visits left; it may use the decoder.

    Raises:
        ParameterError: the pair cannot read the contexts, or the text is too short for them.
    """
    grid.check_fits(longest_text(decoder))
    if len(text) <= grid.contexts[-1]:
        raise ParameterError(f"Expected a text of more than {grid.contexts[-1]} tokens; got {len(text)}.")
    order, began = random.Random(seed), time.monotonic()
    draft = TimedDraft(FilledLookup() if isinstance(decoder.draft, LookupDraft) else decoder.draft)
    kinds = [(context, greedy) for context in grid.contexts for greedy in (True, False)]
    visits = [(repeat, kind) for repeat in range(repeats) for kind in order.sample(kinds, len(kinds))]
    measured: list[list[Sample]] = []
    for number, (repeat, (context, greedy)) in enumerate(visits, start=1):
        if repeat == 0 or time.monotonic() - began < seconds:
            begin = order.randrange(len(text) - context)
            before, decoder.merged = decoder.merged, draft
            try:
                visit = _Visit(decoder, draft, grid, order, greedy)
                measured.append(visit.run(tuple(text[begin : begin + context])))
            finally:
                decoder.merged = before
        progress(f"{'greedy' if greedy else 'sampled'}, {context} tokens")
        between(len(visits) - number)
    return at_one_speed(measured)


class _Visit:
    """A prompt and the rounds after it."""

    def __init__(self, decoder: LiveDecoder, draft: TimedDraft, grid: Grid, order: random.Random, greedy: bool) -> None:
        self.decoder, self.draft, self.grid, self.order, self.greedy = decoder, draft, grid, order, greedy
        self.samples: list[Sample] = []

    def run(self, prompt: tuple[int, ...]) -> list[Sample]:
        """Reads the prompt and runs all rounds that the context has room for."""
        self.bucket = len(prompt)
        sampling = SamplingSettings(0.0 if self.greedy else TEMPERATURE, seed=self.order.getrandbits(32))
        most = self.decoder.target.context_limit  # reaching the limit just ends the visit
        self.decoder.start(Request(prompt, most, sampling, ignore_end=True))
        # The first rounds only warm up: their forwards are unlike later ones. But only here the draft reads a prompt.
        if self.draft.model:
            self.decoder.round(shape(1, 1))
            level = self.draft.levels[0]
            self._note("prompt", level.rows, level.seconds, len(prompt))
        if self.decoder.under_way:
            self.decoder.round(PLAIN)
        for parameters, owed in self._rounds():
            while self.draft.model and self.draft.model.owed < owed and self.decoder.under_way:
                self._measure(PLAIN)
            if not self.decoder.under_way:
                break
            self._measure(parameters)
        return self.samples

    def _rounds(self) -> Iterator[tuple[TreeParameters, int]]:
        """The parameters of each round, and how many tokens the draft has to owe before it."""
        lookup = replace(shape(_BRANCH, 2 * _BRANCH), source="lookup")
        rounds = [*plan(self.grid, self.order), *[lookup] * _LOOKUPS, *[PLAIN] * _PLAINS]
        owed = list(ladder(self.grid.most_owed))
        rounds, owed = rounds + [shape(1, 1)] * (len(owed) - len(rounds)), owed + [1] * (len(rounds) - len(owed))
        self.order.shuffle(rounds)
        self.order.shuffle(owed)
        return zip(rounds, owed, strict=True)

    def _measure(self, parameters: TreeParameters) -> None:
        context = len(self.decoder.tokens) - 1
        outcome, levels = self.decoder.round(parameters), self.draft.levels
        seconds = outcome.seconds
        if not parameters.speculates:
            self._note("plain", 1, seconds.total, context)
        else:
            drafting = sum(level.seconds for level in levels)
            self._note("overhead", 1, seconds.total - seconds.verify - drafting, context)
        if outcome.drafted or not parameters.speculates:
            self._note("verify", outcome.drafted + 1, seconds.verify, context)
        for depth, level in enumerate(levels):
            if level.rows:
                self._note("level" if depth else "root", level.rows, level.seconds, context)
            elif level.lookup_nodes:
                self._note("lookup", 1, level.seconds / level.lookup_nodes, context)

    def _note(self, stage: str, rows: int, seconds: float, context: int) -> None:
        self.samples.append(Sample(self.greedy, stage, self.bucket, context, rows, seconds))

"""What comes of every action at every place, looked up: the tables behind many replays that are stepped together.

The outcomes of an action are tabulated at all roots when it is first asked for. Of the great many pairs of action and
root few have outcomes of their own, so that a pair takes four bytes, the number of its outcome in a book of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from specgym.env.common.arrays import BoolArray, IntArray
from specgym.env.gym.grid import DIMENSIONS, ParameterGrid
from specgym.env.replay.tabulation import Outcomes, TraceTable, tabulate
from specgym.env.tree.parameters import TreeParameters

_FACTS = ("accepted", "drafted", "depth", "asked", "lookup_nodes", "kept")


class OutcomeIndex:
    """Outcomes that differ, each once. Number 0 is a plain round of a greedy text, as which the time before the first
    round shows too: nothing drafted, nobody asked.

    Args:
        levels: most draft levels below the root.

    Attributes:
        sampled: whether the text was sampled, which decides what a round takes, `bool[outcomes]`.
        deeper_rows: see `Outcomes`, `int32[outcomes, levels]`.
        accepted, drafted, depth, asked, lookup_nodes, kept: likewise, `int32[outcomes]`.
    """

    def __init__(self, levels: int) -> None:
        self.levels = levels
        self.rows = np.zeros((1, 1 + len(_FACTS) + levels), np.int32)
        self._numbers: dict[bytes, int] = {self.rows[0].tobytes(): 0}

    def __len__(self) -> int:
        return len(self.rows)

    def enter(self, outcomes: Outcomes, greedy: bool) -> IntArray:
        """The number of each outcome, `int64[n]`; new ones are added."""
        missing = self.levels - outcomes.deeper_rows.shape[1]
        levels = np.pad(outcomes.deeper_rows, ((0, 0), (0, missing)))
        facts = [np.full(len(levels), not greedy), *(getattr(outcomes, name) for name in _FACTS)]
        rows = np.concatenate([np.stack(facts, axis=1), levels], axis=1).astype(np.int32)
        distinct, inverse = np.unique(rows, axis=0, return_inverse=True)
        known = self._numbers
        numbers = np.array([known.setdefault(row.tobytes(), len(known)) for row in distinct], np.int64)
        if len(known) > len(self.rows):
            self.rows = np.concatenate([self.rows, distinct[numbers >= len(self.rows)]])
        found: IntArray = numbers[inverse.reshape(-1)]
        return found

    @property
    def sampled(self) -> BoolArray:
        """See the class."""
        return self.rows[:, 0] > 0

    @property
    def deeper_rows(self) -> npt.NDArray[np.int32]:
        """See the class."""
        return self.rows[:, 1 + len(_FACTS) :]

    def fact(self, name: str) -> IntArray:
        """A fact of every outcome by its name, `int64[outcomes]`."""
        return self.rows[:, 1 + _FACTS.index(name)].astype(np.int64)


class ActionTable:
    """The outcome of every action of a grid at every place of some corpora.

    Places are the tokens of the answers, corpus by corpus and text by text; all but the last one of a text are roots.
    Memory: four bytes for every pair of tree parameters and place, taken as actions are first asked for.

    Args:
        corpora: the texts.
        grid: the actions.

    Attributes:
        book: the outcomes.
        places: how many there are.
    """

    def __init__(self, corpora: Sequence[TraceTable], grid: ParameterGrid) -> None:
        self.corpora, self.grid, self.book = corpora, grid, OutcomeIndex(max(grid.deepest - 1, 0))
        self.choices, self._choice = _distinct(grid)
        self._strides = grid.strides
        counts = [int((corpus.end - corpus.begin).sum()) for corpus in corpora]
        self.places = sum(counts)
        self._first = np.cumsum([0, *counts])
        self._roots = [_root_places(corpus) for corpus in corpora]
        self._known = np.zeros(len(self.choices), np.bool_)
        # Pages of zeros are taken when they are first written to.
        self._numbers = np.zeros((len(self.choices), self.places), np.uint32)

    def choose(self, actions: IntArray) -> IntArray:
        """The number of the tree parameters that each action stands for, of n actions `int64[n]`.

        Raises:
            ParameterError: an action that is not on the grid.
            UnrecordedError: a trace does not cover one of them at some root.
        """
        actions = np.asarray(actions)
        wrong = actions.ndim != 2 or actions.shape[1] != len(DIMENSIONS) or not np.issubdtype(actions.dtype, np.integer)
        off = wrong or ((actions < 0) | (actions >= self.grid.nvec)).any()
        if off:
            for action in np.atleast_1d(actions):
                self.grid.flat(action)  # says what is wrong
        chosen: IntArray = self._choice[actions @ self._strides]
        if not self._known[chosen].all():
            self._tabulate(np.unique(chosen[~self._known[chosen]]))
        return chosen

    def outcomes(self, choices: IntArray, places: IntArray) -> IntArray:
        """Numbers in the book of what tree parameters that were chosen bring at roots, `int64[n]`."""
        return self._numbers[choices, places].astype(np.int64)

    def tabulate_all(self, progress: Callable[[int], None] = lambda done: None) -> None:
        """Fills the table for every action.

        Args:
            progress: told after each set of parameters how many there are by now.

        Raises:
            UnrecordedError: the trace does not cover the grid.
        """
        for choice in np.flatnonzero(~self._known):
            self._tabulate(np.array([choice]))
            progress(int(self._known.sum()))

    def _tabulate(self, choices: IntArray) -> None:
        for choice in choices.tolist():
            for corpus, first, roots in zip(self.corpora, self._first[:-1], self._roots, strict=True):
                found = self.book.enter(tabulate(corpus, self.choices[choice]), corpus.greedy)
                self._numbers[choice, first + roots] = found
            self._known[choice] = True


def _distinct(grid: ParameterGrid) -> tuple[list[TreeParameters], IntArray]:
    """The tree parameters of a grid, each once, and which of them every action means, `int64[actions]`."""
    numbers: dict[TreeParameters, int] = {}
    meant = [numbers.setdefault(grid.parameters(action), len(numbers)) for action in np.ndindex(*grid.nvec)]
    return list(numbers), np.array(meant, np.int64)


def _root_places(corpus: TraceTable) -> IntArray:
    """The place of every root within its corpus, `int64[roots]`."""
    lengths = corpus.end - corpus.begin
    first = np.cumsum(lengths) - lengths
    owner = corpus.owner[corpus.roots]
    places: IntArray = first[owner] + corpus.roots - corpus.begin[owner]
    return places

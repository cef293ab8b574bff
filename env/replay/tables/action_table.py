"""The outcome of every choice at every place of some texts, looked up by many replays that are stepped together.

The outcomes of a choice are tabulated at all roots when it is first needed, or all choices at once on all cores. Few of
the many pairs of choice and root have an outcome of their own, so a pair takes four bytes: the outcome's number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from specgym.env.common.arrays import IntArray
from specgym.env.common.processes import map_on_cores
from specgym.env.gym.grid import ActionSpace
from specgym.env.replay.tables.outcomes import OutcomeIndex, Outcomes, distinct_rows
from specgym.env.replay.tables.table_cache import Array, load_arrays, save_arrays, table_key
from specgym.env.replay.tables.tabulation import families, tabulate_family
from specgym.env.replay.tables.trace_table import TraceTable
from specgym.env.tree.parameters import TreeParameters

_SMALL = 1_000_000  # pairs of choice and root: fewer are neither worth further processes nor the cache
_BLOCK = 64  # most choices of a block: the work is shared between cores by blocks


class OutcomeTable:
    """The outcome of every choice at every place of some texts.

    Places are the tokens of the answers, table by table and text by text; all but the last one of a text are roots.
    Memory: four bytes for every pair of choice and place, taken when choices are first tabulated.

    Args:
        tables: the texts.
        choices: tree parameters, each once.

    Attributes:
        index: the distinct outcomes.
        places: how many there are.
    """

    def __init__(self, tables: Sequence[TraceTable], choices: Sequence[TreeParameters]) -> None:
        self.tables, self.choices = tables, choices
        self.index = OutcomeIndex(max(max((choice.max_depth for choice in choices), default=0) - 1, 0))
        first = np.cumsum([0, *(len(table.roots) + len(table.texts) for table in tables)]).tolist()
        self.places = first[-1]
        # A text has one more place than roots, its end.
        self.roots = [
            begin + np.arange(len(table.roots)) + table.owner[table.roots]
            for begin, table in zip(first, tables, strict=False)
        ]
        self._known = np.zeros(len(choices), np.bool_)
        # Pages of zeros are taken when they are first written to.
        self._numbers = np.zeros((len(choices), self.places), np.uint32)

    @property
    def cores(self) -> int | None:
        """Processes that the work on all choices is worth: 1, or None for one on each usable core."""
        return 1 if len(self.choices) * sum(len(table.roots) for table in self.tables) < _SMALL else None

    def numbers(self, choices: IntArray, places: IntArray) -> IntArray:
        """Returns the numbers of the outcomes of tabulated choices at roots, `int64[n]`."""
        return self._numbers[choices, places].astype(np.int64)

    def outcomes(self, choice: int, table: int = 0) -> Outcomes:
        """Returns the outcomes of a tabulated choice at all roots of a table."""
        return self.index.at(self._numbers[choice, self.roots[table]])

    def tabulate(self, choices: IntArray) -> None:
        """Makes sure that choices are tabulated. Raises `UnrecordedError` if a trace does not cover one of them."""
        if not self._known[choices].all():
            missing = np.unique(choices[~self._known[choices]])
            list(self._fill(missing, keep=False, workers=1))

    def tabulate_all(self, progress: Callable[[int], None] = lambda done: None, workers: int | None = None) -> None:
        """Tabulates every choice, on all usable cores, or takes the tables from the cache.

        Args:
            progress: called after each choice with the number of choices that are tabulated.
            workers: processes; one for each usable core if None.

        Raises:
            UnrecordedError: the trace does not cover a choice.
        """
        missing, done = np.flatnonzero(~self._known), int(self._known.sum())
        keep = self.cores != 1 or workers is not None
        for _ in self._fill(missing, keep, workers or self.cores):
            done += 1
            progress(done)

    def _fill(self, numbers: IntArray, keep: bool, workers: int | None) -> Iterator[int]:
        """Tabulates choices block by block, with `keep` by way of the cache; yields each number that is done."""
        blocks, levels, jobs = _blocks(self.choices, numbers), self.index.levels, []
        for block in blocks:
            choices = [self.choices[number] for number in block]
            keys = [table_key(table.checksum, choices, levels) if keep else None for table in self.tables]
            jobs += [(table, choices, levels, key) for table, key in zip(self.tables, keys, strict=True)]
        results = map_on_cores(lambda job: _tabulated(*job), jobs, workers)
        for block in blocks:
            for table, roots in zip(self.tables, self.roots, strict=True):
                rows, which = next(results)
                self._numbers[np.ix_(block, roots)] = self.index.enter(rows, table.greedy)[which]
            self._known[block] = True
            yield from block.tolist()


def _tabulated(table: TraceTable, choices: list[TreeParameters], levels: int, key: str | None) -> tuple[Array, Array]:
    """Tabulates a block of choices at all roots of a table.

    Args:
        table: the texts.
        choices: the choices, of one family.
        levels: most draft levels below the root.
        key: name of the result in the cache; None if it is not kept there.

    Returns:
        The distinct outcomes, and which of these each choice has at each root, `int[choices, roots]`.
    """
    arrays = load_arrays(key) if key else None
    if arrays is None or not _fit(arrays, len(Outcomes._fields) - 1 + levels, len(choices), len(table.roots)):
        outcomes = tabulate_family(table, choices)
        rows, numbers = distinct_rows(np.concatenate([part.rows(levels) for part in outcomes]))
        numbers = numbers.reshape(len(choices), -1)
        arrays = {"rows": rows, "numbers": numbers.astype(np.uint16 if len(rows) <= 2**16 else np.uint32)}
        if key:
            save_arrays(key, arrays)
    return arrays["rows"], arrays["numbers"]


def _fit(arrays: dict[str, Array], columns: int, choices: int, roots: int) -> bool:
    """Whether arrays from the cache can be those of so many choices and roots."""
    rows, numbers = arrays.get("rows"), arrays.get("numbers")
    return (
        rows is not None
        and numbers is not None
        and (rows.dtype == np.int32 and rows.ndim == 2 and rows.shape[1] == columns)
        and (numbers.dtype.kind == "u" and numbers.shape == (choices, roots))
        and numbers.max(initial=0) < len(rows)
    )


def _blocks(choices: Sequence[TreeParameters], numbers: IntArray) -> list[IntArray]:
    """The numbers of choices in blocks, each within a family."""
    groups = [numbers[family] for family in families([choices[number] for number in numbers])]
    return [block for group in groups for block in np.array_split(group, -(-len(group) // _BLOCK))]


class ActionTable(OutcomeTable):
    """The outcome of every action of a grid at every place of some texts. Actions that mean the same share a choice.

    Args:
        tables: the texts.
        grid: the actions.
    """

    def __init__(self, tables: Sequence[TraceTable], grid: ActionSpace) -> None:
        numbers: dict[TreeParameters, int] = {}
        meant = [numbers.setdefault(grid.parameters(action), len(numbers)) for action in np.ndindex(*grid.nvec)]
        super().__init__(tables, list(numbers))
        self.grid, self._strides, self._choice = grid, grid.strides, np.array(meant, np.int64)

    def choose(self, actions: IntArray) -> IntArray:
        """Returns the number of the choice that each action stands for, `int64[n]`, and tabulates what is missing.

        Args:
            actions: of the grid, `int[n, dimensions]`.

        Raises:
            ParameterError: an action that is not on the grid.
            UnrecordedError: a trace does not cover one of them at some root.
        """
        actions = np.asarray(actions)
        wrong = actions.shape[1:] != self.grid.nvec.shape or not np.issubdtype(actions.dtype, np.integer)
        if wrong or ((actions < 0) | (actions >= self.grid.nvec)).any():
            for action in np.atleast_1d(actions):
                self.grid.flat(action)  # says what is wrong
        chosen: IntArray = self._choice[actions @ self._strides]
        self.tabulate(chosen)
        return chosen

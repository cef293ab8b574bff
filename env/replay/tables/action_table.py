"""The outcome of every choice at every place of some texts, looked up by many replays that are stepped together.

Each pair of choice and root is computed when it is asked for, or all pairs are tabulated on all cores. Few of the many
pairs have an outcome of their own, so a pair takes four bytes of the table: the outcome's number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from specgym.env.common.arrays import IntArray
from specgym.env.common.processes import map_on_cores
from specgym.env.gym.grid import ActionSpace
from specgym.env.replay.tables.growing import Rules, TreeGrower, rules_of
from specgym.env.replay.tables.outcomes import FACTS, OutcomeIndex, Outcomes, distinct_rows
from specgym.env.replay.tables.table_cache import Array, load_arrays, save_arrays, table_key
from specgym.env.replay.tables.tabulation import families, tabulate_family, tabulate_pairs
from specgym.env.replay.tables.trace_table import TraceTable
from specgym.env.tree.parameters import TreeParameters

_SMALL = 1_000_000  # pairs of choice and root: fewer are neither worth further processes nor the cache
_BLOCK = 64  # most choices of a block: the work is shared between cores by blocks


class OutcomeTable:
    """The outcome of every choice at every place of some texts.

    Places are the tokens of the answers, table by table and text by text; all but the last one of a text are roots.
    Memory: four bytes for every pair of choice and place, taken when choices are tabulated. Nothing is kept before.

    Args:
        tables: the texts.
        choices: tree parameters, each once.

    Attributes:
        index: the distinct outcomes.
        places: how many there are.
        tabulated: whether all choices are.
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
        # The table of each place, and the place's token there, [places] each.
        self._table = np.repeat(np.arange(len(tables)), np.diff(first))
        answers = [zip(table.begin, table.end, strict=True) for table in tables]
        self._token = np.concatenate([np.arange(*answer) for answer in itertools.chain(*answers)])
        self.tabulated, self._numbers = False, np.zeros((len(choices), 0), np.uint32)

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

    def prepare(self) -> None:
        """Makes ready for `grown`, in less than a second, so that its first call takes no longer than others."""
        if not self.tabulated:
            _ = self._growers, self._rules

    def grown(self, choices: IntArray, places: IntArray) -> Outcomes:
        """Computes the outcomes of choices at roots, n of each, whether they are tabulated or not.

        Raises:
            UnrecordedError: a trace does not cover one of them.
        """
        rows = np.empty((len(choices), FACTS + self.index.levels), np.int32)
        for number, (table, grower) in enumerate(zip(self.tables, self._growers, strict=True)):
            pairs = np.flatnonzero(self._table[places] == number)
            if not len(pairs):
                continue
            chosen, roots = choices[pairs], self._token[places[pairs]]
            if grower is not None:
                rows[pairs], known = grower.rows(self._rules, chosen, roots, table.deepest(roots), self.index.levels)
                pairs, chosen, roots = pairs[~known], chosen[~known], roots[~known]
            if len(pairs):
                parameters = [self.choices[choice] for choice in chosen]
                rows[pairs] = tabulate_pairs(table, parameters, roots, self.index.levels)
        return Outcomes.of(rows)

    @cached_property
    def _growers(self) -> list[TreeGrower | None]:
        return [TreeGrower.of(table) for table in self.tables]

    @cached_property
    def _rules(self) -> Rules:
        return rules_of(self.choices)

    def tabulate_all(self, progress: Callable[[int], None] = lambda done: None, workers: int | None = None) -> None:
        """Tabulates every choice, once, on all usable cores, or takes the tables from the cache.

        Args:
            progress: called after each choice with the number of choices that are tabulated.
            workers: processes; one for each usable core if None.

        Raises:
            UnrecordedError: the trace does not cover a choice.
        """
        if self.tabulated:
            return
        self._numbers = np.zeros((len(self.choices), self.places), np.uint32)
        done, keep = 0, self.cores != 1 or workers is not None
        blocks, levels, jobs = _blocks(self.choices), self.index.levels, []
        for block in blocks:
            choices = [self.choices[number] for number in block]
            keys = [table_key(table.checksum, choices, levels) if keep else None for table in self.tables]
            jobs += [(table, choices, levels, key) for table, key in zip(self.tables, keys, strict=True)]
        results = map_on_cores(lambda job: _tabulated(*job), jobs, workers or self.cores)
        for block in blocks:
            for table, roots in zip(self.tables, self.roots, strict=True):
                rows, which = next(results)
                self._numbers[np.ix_(block, roots)] = self.index.enter(rows, table.greedy)[which]
            for _ in block:
                done += 1
                progress(done)
        self.tabulated = True


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


def _blocks(choices: Sequence[TreeParameters]) -> list[IntArray]:
    """The numbers of choices in blocks, each within a family."""
    return [block for group in families(choices) for block in np.array_split(group, -(-len(group) // _BLOCK))]


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
        """Returns the number of the choice that each action stands for, `int64[n]`.

        Args:
            actions: of the grid, `int[n, dimensions]`.

        Raises:
            ParameterError: an action that is not on the grid.
        """
        actions = np.asarray(actions)
        wrong = actions.shape[1:] != self.grid.nvec.shape or not np.issubdtype(actions.dtype, np.integer)
        if wrong or ((actions < 0) | (actions >= self.grid.nvec)).any():
            for action in np.atleast_1d(actions):
                self.grid.flat(action)  # says what is wrong
        return np.asarray(self._choice[actions @ self._strides])

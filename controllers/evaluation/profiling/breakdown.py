"""The account of a round's time, typed: what the profile's `results.json` holds, and how it is made of rounds.

JSON is the truth; tables, Markdown and figures are derived from it.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from specgym.controllers.evaluation.profiling.floor import ForwardShape, Work
from specgym.controllers.evaluation.profiling.leak import Growth
from specgym.controllers.evaluation.profiling.operators import GROUPS, OTHER, OVERHEAD
from specgym.controllers.evaluation.profiling.profiled_rounds import (
    PARTS,
    WORKING,
    AccountGrid,
    ProfiledRound,
    TimedRound,
)
from specgym.controllers.evaluation.profiling.rates import MachineRates
from specgym.controllers.evaluation.profiling.startup import Startup
from specgym.controllers.evaluation.results.schema import Machine

JSON: TypeAlias = Any
_Round = TypeVar("_Round", TimedRound, ProfiledRound)

ACCOUNT_VERSION = 3
_VERIFICATION = 16  # rows of the verification that is set against its floor


@dataclass(frozen=True)
class Floor:
    """The least time of something."""

    seconds: float  # [s]
    bound: str  # what holds it up: "memory" or "arithmetic"
    bytes: float  # read at least [bytes]
    operations: float  # floating-point operations


@dataclass(frozen=True)
class Cell:
    """Rounds of one tree size after prompts of one length."""

    context: int  # length of the prompts [tokens]
    rows: int  # rows verified; 1 is a plain step
    position: float  # mean length of the text when they began [tokens]
    rounds: int  # rounds timed; what follows is the mean of the middle half of them, by their time
    seconds: float  # a whole round [s]
    parts: dict[str, float]  # wall time by `PARTS`, summing to `seconds` [s]
    level_rows: float  # rows of all draft forwards of a round, what was owed included
    levels: float  # draft levels of a round
    verify_floor: Floor
    draft_floor: Floor | None  # of all draft levels; None if there were no draft forwards
    profiled: int  # rounds profiled, of which the middle half counts; 0 if the run was stopped before
    slowdown: float | None  # time of profiled rounds over that of timed ones
    operators: dict[str, dict[str, float]]  # by part of `WORKING`: shares of its time by `GROUPS`, summing to 1
    unknown: dict[str, float]  # operators of no group: shares of the profiled rounds' time

    @property
    def floor_seconds(self) -> float:
        """The floor of a whole round [s]."""
        return self.verify_floor.seconds + (self.draft_floor.seconds if self.draft_floor else 0.0)


@dataclass(frozen=True)
class Ratio:
    """Something measured, set against its floor."""

    what: str  # "plain step", "verification" or "draft level"
    context: int  # length of the prompts [tokens]
    rows: int
    seconds: float  # measured [s]
    floor: Floor
    ratio: float  # measured / floor


@dataclass(frozen=True)
class Memory:
    """What the process, or on a GPU its tensors, held [bytes]; None where the system does not tell."""

    before: int | None  # before the models were loaded: Python and libraries
    peak: int | None  # the most from then to the end of the timed rounds, loading included
    libraries: int | None  # of it, code of libraries that was first run after `before`
    weights: int  # of both models, counted once, in their precision
    states: int  # keys and values of the longest text, in the precision that the caches keep

    @property
    def ratio(self) -> float | None:
        """What the models, their caches and the work took at most, over the bytes of weights, keys and values."""
        if self.peak is None or self.before is None:
            return None
        return (self.peak - self.before - (self.libraries or 0)) / (self.weights + self.states)


@dataclass(frozen=True, kw_only=True)
class Account:
    """Everything that one run has to say."""

    schema_version: int = ACCOUNT_VERSION
    kind: str = "profile"
    complete: bool  # False: the run was stopped before its end
    started_at: str  # UTC, ISO 8601
    command: str
    git_revision: str | None  # with "-dirty" if tracked files were modified
    versions: dict[str, str]
    machine: Machine
    settings: dict[str, JSON]
    rates: MachineRates
    memory: Memory
    startup: Startup
    growth: Growth | None = None  # None: stopped before
    cells: list[Cell] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)

    def to_json(self) -> str:
        """The account as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def make_cells(
    grid: AccountGrid,
    timed: Sequence[TimedRound],
    profiled: Sequence[ProfiledRound],
    shapes: tuple[ForwardShape, ForwardShape | None],
    rates: MachineRates,
) -> list[Cell]:
    """One cell for every context and size of which a round was timed, in the grid's order.

    Args:
        grid: what was asked for.
        timed: the timed rounds.
        profiled: the profiled ones.
        shapes: of the target's forward and of the draft's, if it has one.
        rates: what the machine can do.
    """
    cells = []
    for context in grid.contexts:
        for rows in grid.rows:
            rounds = [each for each in timed if (each.context, each.rows) == (context, rows)]
            under = [each for each in profiled if (each.context, each.rows) == (context, rows)]
            if rounds:
                cells.append(_cell(rounds, under, shapes, rates))
    return cells


def _cell(
    rounds: Sequence[TimedRound],
    profiled: Sequence[ProfiledRound],
    shapes: tuple[ForwardShape, ForwardShape | None],
    rates: MachineRates,
) -> Cell:
    target, draft = shapes
    middle = _middle_half(rounds)
    parts = {part: statistics.fmean(each.parts[part] for each in middle) for part in PARTS}
    position, rows = statistics.fmean(each.position for each in middle), rounds[0].rows
    drafting = [
        # The first level answers for the root alone, whatever it reads.
        draft.work(number, each.position, kept=1 if depth == 0 else None)
        for each in middle
        for depth, (number, _) in enumerate(each.levels)
        if draft is not None and number
    ]
    # A round's floor is the sum of its forwards' floors: one that waits for memory does not multiply meanwhile.
    draft_seconds = sum(work.seconds(rates) for work in drafting) / len(middle)
    total = Work(sum(work.bytes for work in drafting) / len(middle), sum(w.operations for w in drafting) / len(middle))
    counted = _middle_half(profiled)
    under = sum(each.seconds for each in counted)
    return Cell(
        context=rounds[0].context,
        rows=rows,
        position=position,
        rounds=len(rounds),
        seconds=sum(parts.values()),
        parts=parts,
        level_rows=statistics.fmean(sum(number for number, _ in each.levels) for each in middle),
        levels=statistics.fmean(len(each.levels) for each in middle),
        verify_floor=_floor(target.work(rows, position), rates),
        draft_floor=dataclasses.replace(_floor(total, rates), seconds=draft_seconds) if drafting else None,
        profiled=len(profiled),
        slowdown=under / len(counted) / sum(parts[part] for part in WORKING) if counted else None,
        operators=_shares(counted),
        unknown={name: seconds / under for name, seconds in _unknown(counted).items()},
    )


def _middle_half(rounds: Sequence[_Round]) -> Sequence[_Round]:
    """The rounds without the quickest and the slowest quarter: their means add up, as medians would not."""
    ordered, quarter = sorted(rounds, key=lambda each: each.seconds), len(rounds) // 4
    return ordered[quarter : len(ordered) - quarter]


def _shares(profiled: Sequence[ProfiledRound]) -> dict[str, dict[str, float]]:
    """Shares by group, of each part that took time."""
    shares = {}
    for part in WORKING:
        seconds = {group: sum(each.groups[part][group] for each in profiled) for group in GROUPS}
        if total := sum(seconds.values()):
            shares[part] = {group: value / total for group, value in seconds.items()}
    return shares


def _unknown(profiled: Iterable[ProfiledRound]) -> dict[str, float]:
    found: dict[str, float] = {}
    for each in profiled:
        for name, seconds in each.unknown.items():
            found[name] = found.get(name, 0.0) + seconds
    return found


def _floor(work: Work, rates: MachineRates) -> Floor:
    return Floor(work.seconds(rates), work.bound(rates), work.bytes, work.operations)


def make_ratios(
    cells: Sequence[Cell], timed: Sequence[TimedRound], draft: ForwardShape | None, rates: MachineRates
) -> list[Ratio]:
    """A plain step, a verification of 16 rows and a draft level past the first, at every context where there is one."""
    ratios = []
    for cell in cells:
        if cell.rows == 1:
            ratios.append(_ratio("plain step", cell.context, 1, cell.seconds, cell.verify_floor))
        if cell.rows == _VERIFICATION:
            ratios.append(_ratio("verification", cell.context, cell.rows, cell.parts["verify"], cell.verify_floor))
    for context in dict.fromkeys(cell.context for cell in cells) if draft is not None else ():
        rounds = [each for each in timed if each.context == context]
        levels = [(rows, seconds, each.position) for each in rounds for rows, seconds in each.levels[1:] if rows]
        if levels and draft is not None:
            rows = Counter(rows for rows, _, _ in levels).most_common(1)[0][0]
            seconds = statistics.median(seconds for number, seconds, _ in levels if number == rows)
            position = statistics.fmean(place for number, _, place in levels if number == rows)
            ratios.append(_ratio("draft level", context, rows, seconds, _floor(draft.work(rows, position), rates)))
    return ratios


def _ratio(what: str, context: int, rows: int, seconds: float, floor: Floor) -> Ratio:
    return Ratio(what, context, rows, seconds, floor, seconds / floor.seconds)


def seconds_by_operator(cell: Cell) -> dict[str, float]:
    """A whole round by group of operators [s]: shares of the profiled rounds, seconds of the timed ones.

    The controller and the rest of a round run no operators and are overhead. Empty if no round was profiled.
    """
    if not cell.profiled:
        return {}
    found = dict.fromkeys(GROUPS, 0.0)
    for part, seconds in cell.parts.items():
        shares = cell.operators.get(part, {OVERHEAD: 1.0})
        for group, share in shares.items():
            found[group] += share * seconds
    return found


def other_share(cells: Iterable[Cell]) -> float | None:
    """Share of all profiled cells' time that operators of no group took; None if none was profiled."""
    accounts = [seconds_by_operator(cell) for cell in cells if cell.profiled]
    total = sum(sum(account.values()) for account in accounts)
    return sum(account[OTHER] for account in accounts) / total if total else None


def unknown_operators(cells: Iterable[Cell]) -> list[str]:
    """Names of operators of no group, those that took the greatest share of a round first."""
    greatest: dict[str, float] = {}
    for cell in cells:
        for name, share in cell.unknown.items():
            greatest[name] = max(share, greatest.get(name, 0.0))
    return sorted(greatest, key=lambda name: -greatest[name])

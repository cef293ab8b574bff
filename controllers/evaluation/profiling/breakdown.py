"""The breakdown of a round's time as a typed record: the content of `results.json`, and how it is made of rounds.

JSON is the truth; tables, Markdown and figures are derived from it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, TypeVar

from specgym.controllers.evaluation.profiling import process
from specgym.controllers.evaluation.profiling.floor import (
    Floor,
    ForwardShape,
    MachineRates,
    draft_shape,
    measure_rates,
    model_shape,
)
from specgym.controllers.evaluation.profiling.operators import GROUPS, OTHER, OVERHEAD
from specgym.controllers.evaluation.profiling.process import Growth, Startup
from specgym.controllers.evaluation.profiling.profiler import PARTS, WORKING, RecordedRound, RoundProfiler, TimedRound
from specgym.controllers.evaluation.results.schema import Machine

_Round = TypeVar("_Round", TimedRound, RecordedRound)

_VERIFICATION = 16  # rows of the verification that is compared with its floor


@dataclass(frozen=True)
class Cell:
    """Rounds of one tree size after prompts of one length."""

    context: int  # length of the prompts [tokens]
    rows: int  # rows verified; 1 is a plain step
    position: float  # mean length of the text when they began [tokens]
    rounds: int  # rounds timed; all numbers are means of the middle half of them by time
    seconds: float  # a whole round [s]
    parts: dict[str, float]  # wall time by `PARTS`, summing to `seconds` [s]
    level_rows: float  # rows of all draft forwards of a round, tokens that the draft had not read included
    levels: float  # draft levels of a round
    verify_floor: Floor
    draft_floor: Floor | None  # all draft levels together; None if there were no draft forwards
    profiled: int  # rounds profiled, of which the middle half counts; 0 if the run was stopped before
    slowdown: float | None  # time of profiled rounds over that of timed ones
    operators: dict[str, dict[str, float]]  # by part of `WORKING`: shares of its time by `GROUPS`, summing to 1
    unknown: dict[str, float]  # operators without a group: shares of the profiled rounds' time

    @property
    def floor_seconds(self) -> float:
        """Floor of a whole round [s]."""
        return self.verify_floor.seconds + (self.draft_floor.seconds if self.draft_floor else 0.0)

    @property
    def seconds_by_group(self) -> dict[str, float]:
        """A whole round by group of operators [s]: shares of the profiled rounds, seconds of the timed ones.

        The controller and the rest of a round run no operators and count as overhead. Empty without profiled rounds.
        """
        groups = dict.fromkeys(GROUPS, 0.0) if self.profiled else {}
        for part, seconds in self.parts.items() if self.profiled else ():
            for group, share in self.operators.get(part, {OVERHEAD: 1.0}).items():
                groups[group] += share * seconds
        return groups


@dataclass(frozen=True)
class Ratio:
    """A measured time compared with its floor."""

    what: str  # "plain step", "verification" or "draft level"
    context: int  # length of the prompts [tokens]
    rows: int
    seconds: float  # measured [s]
    floor: Floor
    ratio: float  # measured / floor


@dataclass(frozen=True)
class Memory:
    """Memory of the process, or on a GPU of its tensors [bytes]; None where the system does not report it."""

    before: int | None  # before the models were loaded: Python and libraries
    peak: int | None  # the most from then to the end of the timed rounds, loading included
    libraries: int | None  # part of `peak`: code of libraries that first ran after `before`
    weights: int  # both models, counted once, in their precision
    states: int  # keys and values of the longest text, in the precision of the caches

    @property
    def ratio(self) -> float | None:
        """Peak memory of models, caches and work over the bytes of weights, keys and values."""
        if self.peak is None or self.before is None:
            return None
        return (self.peak - self.before - (self.libraries or 0)) / (self.weights + self.states)


@dataclass(frozen=True, kw_only=True)
class TimeBreakdown:
    """Everything that one run has measured."""

    schema_version: int = 3
    kind: str = "profile"
    complete: bool  # False: the run was stopped before its end
    started_at: str  # UTC, ISO 8601
    command: str
    git_revision: str | None  # with "-dirty" if tracked files were modified
    versions: dict[str, str]
    machine: Machine
    settings: dict[str, Any]
    rates: MachineRates
    memory: Memory
    startup: Startup
    growth: Growth | None = None  # None: stopped before
    cells: list[Cell] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)

    @property
    def other_share(self) -> float | None:
        """Share of all profiled cells' time in operators without a group; None if no cell was profiled."""
        groups = [cell.seconds_by_group for cell in self.cells if cell.profiled]
        total = sum(sum(seconds.values()) for seconds in groups)
        return sum(seconds[OTHER] for seconds in groups) / total if total else None

    @property
    def unknown_operators(self) -> list[str]:
        """Names of operators without a group, by their greatest share of a round."""
        shares = sorted((share, name) for cell in self.cells for name, share in cell.unknown.items())
        return list(dict.fromkeys(name for _, name in reversed(shares)))


class Measurement:
    """A breakdown in the making: everything that was measured so far. It begins with the machine's rates.

    Args:
        profiler: runs the rounds.
        facts: the fields of the breakdown that are not measured here.
        before: memory of the process before the models were loaded, and code of libraries in it [bytes].
    """

    def __init__(self, profiler: RoundProfiler, facts: dict[str, Any], before: tuple[int | None, int | None]) -> None:
        self.profiler, self.facts = profiler, facts
        self.timed: list[TimedRound] = []
        self.profiled: list[RecordedRound] = []
        self.growth: Growth | None = None
        target, grid = profiler.decoder.target, profiler.grid
        self.shapes = model_shape(target), draft_shape(profiler.decoder.draft)
        models = [shape for shape in self.shapes if shape is not None]
        held, self.code = (0, None) if target.device.type == "cuda" else before
        peak = process.memory_peak(target.device)
        self.rates = self.measure_rates()
        process.forget_peak(target.device)
        self.memory = Memory(
            before=held,
            peak=peak,
            libraries=None,
            weights=sum(shape.weight_bytes + shape.table_bytes for shape in models),
            states=sum(shape.kept_bytes for shape in models) * (grid.contexts[-1] + grid.room),
        )

    def measure_rates(self) -> MachineRates:
        """Measures the machine's rates, in the target's precision."""
        target = self.profiler.decoder.target
        return measure_rates(target.dtype, target.device)

    def update_peak(self) -> None:
        """Takes in the most memory that was held since the peak was forgotten last."""
        peak, code = process.memory_peak(self.profiler.decoder.target.device), process.library_pages()
        self.memory = replace(
            self.memory,
            peak=max(peak or 0, self.memory.peak or 0) or None,
            libraries=None if code is None or self.code is None else code - self.code,
        )

    def breakdown(self, complete: bool) -> TimeBreakdown:
        """Returns the breakdown of what was measured so far, by context and size in the grid's order."""
        sizes = list(product(self.profiler.grid.contexts, self.profiler.grid.rows))
        rounds = [(_of_size(self.timed, size), _of_size(self.profiled, size)) for size in sizes]
        cells = [_cell(timed, recorded, self.shapes, self.rates) for timed, recorded in rounds if timed]
        return TimeBreakdown(
            **self.facts,
            complete=complete,
            rates=self.rates,
            memory=self.memory,
            growth=self.growth,
            cells=cells,
            ratios=_ratios(cells, self.timed, self.shapes[1], self.rates),
        )


def _of_size(rounds: Sequence[_Round], size: tuple[int, int]) -> list[_Round]:
    return [round_ for round_ in rounds if (round_.context, round_.rows) == size]


def _cell(
    timed: Sequence[TimedRound],
    recorded: Sequence[RecordedRound],
    shapes: tuple[ForwardShape, ForwardShape | None],
    rates: MachineRates,
) -> Cell:
    middle, profiled = _middle_half(timed), _middle_half(recorded)
    parts = {part: statistics.fmean(round_.parts[part] for round_ in middle) for part in PARTS}
    position, rows = statistics.fmean(round_.position for round_ in middle), timed[0].rows
    profiled_seconds, unknown = sum(round_.seconds for round_ in profiled), defaultdict[str, float](float)
    for name, seconds in (item for round_ in profiled for item in round_.unknown.items()):
        unknown[name] += seconds / profiled_seconds
    return Cell(
        context=timed[0].context,
        rows=rows,
        position=position,
        rounds=len(timed),
        seconds=sum(parts.values()),
        parts=parts,
        level_rows=statistics.fmean(sum(level_rows for level_rows, _ in round_.levels) for round_ in middle),
        levels=statistics.fmean(len(round_.levels) for round_ in middle),
        verify_floor=shapes[0].floor(rates, rows, position),
        draft_floor=_draft_floor(middle, shapes[1], rates),
        profiled=len(recorded),
        slowdown=profiled_seconds / len(profiled) / sum(parts[part] for part in WORKING) if profiled else None,
        operators=_shares(profiled),
        unknown=dict(unknown),
    )


def _middle_half(rounds: Sequence[_Round]) -> Sequence[_Round]:
    """Leaves out the fastest and the slowest quarter. Means of the rest add up; medians would not."""
    ordered, quarter = sorted(rounds, key=lambda round_: round_.seconds), len(rounds) // 4
    return ordered[quarter : len(ordered) - quarter]


def _draft_floor(rounds: Sequence[TimedRound], draft: ForwardShape | None, rates: MachineRates) -> Floor | None:
    """Returns the floor of a round's draft forwards. Floors add up: a forward waiting for memory computes nothing."""
    floors = [
        # The first level computes the root's logits alone, however many rows it reads.
        draft.floor(rates, rows, round_.position, kept=1 if depth == 0 else None)
        for round_ in rounds
        for depth, (rows, _) in enumerate(round_.levels)
        if draft is not None and rows
    ]
    columns = ([getattr(floor, name) for floor in floors] for name in ("seconds", "bytes", "operations"))
    seconds, read, operations = (sum(column) / len(rounds) for column in columns)
    return replace(Floor.of(read, operations, rates), seconds=seconds) if floors else None


def _shares(recorded: Sequence[RecordedRound]) -> dict[str, dict[str, float]]:
    """Returns shares by group, of each part that took time."""
    shares = {}
    for part in WORKING:
        seconds = {group: sum(round_.groups[part][group] for round_ in recorded) for group in GROUPS}
        if total := sum(seconds.values()):
            shares[part] = {group: value / total for group, value in seconds.items()}
    return shares


def _ratios(
    cells: Sequence[Cell], timed: Sequence[TimedRound], draft: ForwardShape | None, rates: MachineRates
) -> list[Ratio]:
    """Compares plain steps, verifications of 16 rows and draft levels past the first with their floors."""
    ratios = []
    for cell in cells:
        what, seconds = ("plain step", cell.seconds) if cell.rows == 1 else ("verification", cell.parts["verify"])
        if cell.rows in (1, _VERIFICATION):
            ratios.append(_ratio(what, cell.context, cell.rows, seconds, cell.verify_floor))
    for context in dict.fromkeys(cell.context for cell in cells):
        rounds = [round_ for round_ in timed if round_.context == context]
        levels = [(rows, seconds, round_.position) for round_ in rounds for rows, seconds in round_.levels[1:] if rows]
        if levels and draft is not None:
            usual = statistics.mode(rows for rows, _, _ in levels)
            _, times, positions = zip(*(level for level in levels if level[0] == usual), strict=True)
            floor = draft.floor(rates, usual, statistics.fmean(positions))
            ratios.append(_ratio("draft level", context, usual, statistics.median(times), floor))
    return ratios


def _ratio(what: str, context: int, rows: int, seconds: float, floor: Floor) -> Ratio:
    return Ratio(what, context, rows, seconds, floor, seconds / floor.seconds)

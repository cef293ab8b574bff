"""The breakdown of a round's time for readers: terminal tables, Markdown and a figure, beside the JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from specgym.controllers.evaluation.profiling.breakdown import Cell, TimeBreakdown
from specgym.controllers.evaluation.profiling.operators import GROUPS
from specgym.controllers.evaluation.profiling.profiler import PARTS
from specgym.controllers.evaluation.results import figures
from specgym.controllers.evaluation.results.schema import to_json
from specgym.controllers.evaluation.results.tables import INCOMPLETE, Table, markdown_page
from specgym.env.common.files import write_text

_FIGURE = "breakdown.png"
_GROUP_COLOURS = (figures.BLUE, figures.SKY, figures.GREEN, figures.YELLOW, figures.PINK, *reversed(figures.STAGES[3:]))
_WIDTH = 0.72  # of a bar


def breakdown_tables(breakdown: TimeBreakdown) -> list[Table]:
    """Returns tables of rounds by part, of rounds by group of operators, and of times compared with their floors."""
    parts, groups, ratios = [], [], []
    for cell in breakdown.cells:
        size, seconds = (f"{cell.context:,}", cell.rows), cell.seconds_by_group
        times = map(_ms, (cell.seconds, *(cell.parts[part] for part in PARTS), cell.floor_seconds))
        parts.append((*size, *times, f"{cell.seconds / cell.floor_seconds:.2f}"))
        if cell.profiled:
            shares = (f"{100 * seconds[group] / cell.seconds:.1f}" for group in GROUPS)
            groups.append((*size, *shares, f"{100 * (cell.slowdown or 1) - 100:+.0f}%"))
    for ratio in breakdown.ratios:
        numbers = _ms(ratio.seconds), _ms(ratio.floor.seconds), f"{ratio.ratio:.2f}"
        ratios.append((ratio.what, f"{ratio.context:,}", ratio.rows, *numbers, ratio.floor.bound))
    compared = ("what", "context", "rows", "measured ms", "floor ms", "x floor", "bound by")
    tables = [
        Table(("context", "rows", "round", *PARTS, "floor", "x floor"), parts, "A round by part [ms]"),
        Table(("context", "rows", *GROUPS, "slowed"), groups, "A round by group of operators [%]"),
        Table(compared, ratios, "Against the floor"),
    ]
    return [table for table in tables if table.rows]


def breakdown_notes(breakdown: TimeBreakdown) -> list[str]:
    """Returns a sentence each on the machine's rates, unknown operators, memory, growth and the start."""
    rates, memory, growth, start = breakdown.rates, breakdown.memory, breakdown.growth, breakdown.startup
    share, unknown = breakdown.other_share, breakdown.unknown_operators
    notes = [
        f"The machine reads {1e-9 * rates.read_bytes_per_second:.1f} GB/s (a buffer of {_mib(rates.buffer_bytes)}; "
        f"its last cache holds {_mib(rates.cache_bytes)}) and does {1e-9 * rates.operations_per_second:,.0f} "
        f"billion operations a second in {breakdown.settings.get('dtype', 'this precision')}."
    ]
    if share is not None:
        names = f": {', '.join(unknown)}" if unknown else ""
        notes.append(f"Operators of no group took {100 * share:.2f} % of the time{names}.")
    code = f" and {_mib(memory.libraries)} code of libraries that first ran later" if memory.libraries else ""
    ratio = "" if memory.ratio is None else f"; the rest is {memory.ratio:.2f} times weights, keys and values"
    notes.append(
        f"Memory: weights {_mib(memory.weights)}, keys and values {_mib(memory.states)}; at most {_mib(memory.peak)} "
        f"were held at once, {_mib(memory.before)} of them before the models were loaded{code}{ratio}."
    )
    if growth is not None:
        growing = growth.bytes_per_request
        average = "" if growing is None else f", {growing / 1024:+.2f} KiB a request"
        notes.append(
            f"Growth: {_mib(growth.after_warm_up)} of the process's own, without pages of files, after the warm-up, "
            f"{_mib(growth.after_last)} after {growth.requests:,} more requests{average}."
        )
    notes.append(
        f"Start: {start.total:.1f} s until it decodes at full speed: imports {_seconds(start.imports)}, loading both "
        f"models {_seconds(start.loading)}, the first text {_seconds(start.first_text)} and the same again "
        f"{_seconds(start.same_text)}. Compiling, once for a machine: {_seconds(start.compiling)}."
    )
    return notes if breakdown.complete else [INCOMPLETE, *notes]


def write_breakdown(breakdown: TimeBreakdown, folder: Path) -> None:
    """Writes `results.json`, then `results.md` and `breakdown.png` made from it, each atomically.

    Raises:
        FileWriteError: a file could not be written; its previous version is untouched.
    """
    write_record(breakdown, folder)
    notes = "\n".join(f"- {note}" for note in breakdown_notes(breakdown))
    facts = vars(breakdown) | {"machine": vars(breakdown.machine)}
    page = markdown_page("Profile: where a round's time goes", facts, [notes, *breakdown_tables(breakdown)])
    write_text(folder / "results.md", page)
    if breakdown.cells:
        plot_breakdown(breakdown, folder / _FIGURE)
    else:
        (folder / _FIGURE).unlink(missing_ok=True)  # one of an earlier run would contradict the new numbers


def write_record(breakdown: TimeBreakdown, folder: Path) -> None:
    """Writes `results.json` alone, which needs no library that would count as memory. Raises `FileWriteError`."""
    write_text(folder / "results.json", to_json(breakdown))


def plot_breakdown(breakdown: TimeBreakdown, path: Path) -> None:
    """Draws rounds by part and, where they were profiled, by group of operators below, with a column for each context.

    Raises:
        FileWriteError: the file could not be written.
    """
    contexts = list(dict.fromkeys(cell.context for cell in breakdown.cells))
    profiled = any(cell.profiled for cell in breakdown.cells)
    settings, machine = breakdown.settings, breakdown.machine
    place = machine.cpu if machine.device == "cpu" else machine.device
    figure, panels = figures.new_figure(
        "Time of a round",
        (2.6 + 3.6 * len(contexts), 7.6 if profiled else 4.6),
        (1 + profiled, len(contexts)),
        subtitle=f"{settings['target']} with {settings['draft']}, {settings['dtype']}, {place}",
        footer=figures.origin(breakdown.started_at, breakdown.git_revision),
        warning="" if breakdown.complete else "INCOMPLETE RUN",
        sharey=True,
    )
    kinds = (PARTS, "parts", figures.STAGES), (GROUPS, "seconds_by_group", _GROUP_COLOURS)
    for column, context in enumerate(contexts):
        for axes, (names, field, colours) in zip(panels[:, column], kinds, strict=False):
            cells = [cell for cell in breakdown.cells if cell.context == context and (cell.profiled or names is PARTS)]
            _draw(axes, cells, field, dict(zip(names, colours, strict=True)))
        panels[0, column].set_title(f"context {context:,} tokens", loc="left", fontsize=10)
        panels[-1, column].set_xlabel("rows verified")
    for row in panels:
        row[0].set_ylabel("ms a round")
        row[-1].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figures.save_figure(figure, path)


def _draw(axes: Axes, cells: Sequence[Cell], field: str, colours: dict[str, str]) -> None:
    """Stacks each cell's times as a bar, from the field of that name, and marks the cells' floors."""
    bars, places, bottoms = [getattr(cell, field) for cell in cells], range(len(cells)), [0.0] * len(cells)
    for name, colour in colours.items():
        heights = [1e3 * bar[name] for bar in bars]
        axes.bar(places, heights, _WIDTH, bottom=bottoms, color=colour, edgecolor="white", linewidth=0.4, label=name)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    floors = [1e3 * cell.floor_seconds for cell in cells]
    ends = [place - _WIDTH / 2 for place in places], [place + _WIDTH / 2 for place in places]
    axes.hlines(floors, *ends, color="black", linewidth=2, label="floor")
    axes.set_xticks(places, [str(cell.rows) for cell in cells])
    axes.grid(visible=False, axis="x")


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}" if seconds >= 1e-4 else f"{1e3 * seconds:.4f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _mib(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:,.1f} MiB"

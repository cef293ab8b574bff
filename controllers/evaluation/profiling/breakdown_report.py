"""The account of a round's time as people read it: terminal tables, Markdown and a figure, beside the JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from specgym.controllers.evaluation.profiling.breakdown import (
    Account,
    Cell,
    other_share,
    seconds_by_operator,
    unknown_operators,
)
from specgym.controllers.evaluation.profiling.operators import GROUPS
from specgym.controllers.evaluation.profiling.profiled_rounds import PARTS
from specgym.env.common.files import atomic_path, write_text

_NOTHING = "-"
_INCOMPLETE = "INCOMPLETE: the run was stopped before its end; these numbers are of the part that was measured."
_FIGURE = "account.png"
_Section = tuple[str, Sequence[str], list[Sequence[str]]]


def account_tables(account: Account) -> list[Table]:
    """Tables for the terminal: rounds by part, rounds by group of operators, and what is set against its floor."""
    tables = []
    for title, headers, lines in _sections(account):
        table = Table(title=Text(title), box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        for index, header in enumerate(headers):
            table.add_column(Text(header), justify="left" if index == 0 else "right", overflow="fold")
        for line in lines:
            table.add_row(*(Text(cell) for cell in line))
        tables.append(table)
    return tables


def account_notes(account: Account) -> list[str]:
    """What no table says, a sentence each: the machine's rates, unknown operators, memory, growth and the start."""
    rates, memory, growth, start = account.rates, account.memory, account.growth, account.startup
    share, unknown = other_share(account.cells), unknown_operators(account.cells)
    notes = [] if account.complete else [_INCOMPLETE]
    notes += [
        f"The machine reads {1e-9 * rates.read_bytes_per_second:.1f} GB/s (a buffer of {_mib(rates.buffer_bytes)}; "
        f"its last cache holds {_mib(rates.cache_bytes)}) and does {1e-9 * rates.operations_per_second:,.0f} "
        f"billion operations a second in {account.settings.get('dtype', 'this precision')}."
    ]
    if share is not None:
        notes.append(
            f"Operators of no group took {100 * share:.2f} % of the time"
            + (f": {', '.join(unknown)}." if unknown else ".")
        )
    notes.append(
        f"Memory: weights {_mib(memory.weights)}, keys and values {_mib(memory.states)}; at most {_mib(memory.peak)} "
        f"were held at once, {_mib(memory.before)} of them before the models were loaded"
        + (f" and {_mib(memory.libraries)} code of libraries that was first run since" if memory.libraries else "")
        + (f"; the rest is {memory.ratio:.2f} times weights, keys and values." if memory.ratio is not None else ".")
    )
    if growth is not None:
        each = growth.bytes_per_request
        notes.append(
            f"Growth: {_mib(growth.after_warm_up)} of the process's own, pages of files left out, after the warm-up, "
            f"{_mib(growth.after_last)} after {growth.requests:,} more requests"
            + ("." if each is None else f", {each / 1024:+.2f} KiB a request.")
        )
    notes.append(
        f"Start: {start.total:.1f} s until it decodes at its speed: imports {_seconds(start.imports)}, loading both "
        f"models {_seconds(start.loading)}, the first text {_seconds(start.first_text)} and the same again "
        f"{_seconds(start.same_text)}. Compiling, once for a machine: {_seconds(start.compiling)}."
    )
    return notes


def account_markdown(account: Account) -> str:
    """The tables and notes with settings, machine and versions."""
    blocks = ["# Profile: where a round's time goes"]
    blocks += [f"Started {account.started_at}, revision {account.git_revision or 'not a git checkout'}."]
    blocks += [f"```\n{account.command}\n```", "\n".join(f"- {_escape(note)}" for note in account_notes(account))]
    for title, headers, lines in _sections(account):
        blocks += [f"## {title}", _grid(headers, lines)]
    facts = {"Settings": account.settings, "Machine": vars(account.machine), "Versions": account.versions}
    for title, values in facts.items():
        lines = [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in values.items()]
        blocks += [f"## {title}", _grid(("what", "value"), lines)]
    return "\n\n".join(blocks) + "\n"


def write_account(account: Account, folder: Path) -> None:
    """Writes `results.json`, then `results.md` and `account.png` made from it, each atomically.

    Raises:
        FileWriteError: a file could not be written; the version of it that stood there is untouched.
    """
    write_record(account, folder)
    write_text(folder / "results.md", account_markdown(account))
    if account.cells:
        plot_account(account, folder / _FIGURE)
    else:
        (folder / _FIGURE).unlink(missing_ok=True)  # one of an earlier run would contradict the new numbers


def write_record(account: Account, folder: Path) -> None:
    """Writes `results.json` alone, for which no library is needed that would count as memory. Raises as above."""
    write_text(folder / "results.json", account.to_json())


def _sections(account: Account) -> list[_Section]:
    parts = ("context", "rows", "round", *PARTS, "floor", "x floor")
    groups = ("context", "rows", *GROUPS, "slowed")
    ratios = ("what", "context", "rows", "measured ms", "floor ms", "x floor", "bound by")
    sections: list[_Section] = [
        ("A round by part [ms]", parts, [_part_line(cell) for cell in account.cells]),
        ("A round by group of operators [%]", groups, [_group_line(cell) for cell in account.cells if cell.profiled]),
        (
            "Against the floor",
            ratios,
            [
                (
                    ratio.what,
                    f"{ratio.context:,}",
                    str(ratio.rows),
                    _ms(ratio.seconds),
                    _ms(ratio.floor.seconds),
                    f"{ratio.ratio:.2f}",
                    ratio.floor.bound,
                )
                for ratio in account.ratios
            ],
        ),
    ]
    return [section for section in sections if section[2]]


def _part_line(cell: Cell) -> Sequence[str]:
    times = (_ms(value) for value in (cell.seconds, *(cell.parts[part] for part in PARTS), cell.floor_seconds))
    return (f"{cell.context:,}", str(cell.rows), *times, f"{cell.seconds / cell.floor_seconds:.2f}")


def _group_line(cell: Cell) -> Sequence[str]:
    seconds = seconds_by_operator(cell)
    shares = (f"{100 * seconds[group] / cell.seconds:.1f}" for group in GROUPS)
    return (f"{cell.context:,}", str(cell.rows), *shares, f"{100 * (cell.slowdown or 1) - 100:+.0f}%")


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}" if seconds >= 1e-4 else f"{1e3 * seconds:.4f}"


def _seconds(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.2f} s"


def _mib(count: int | None) -> str:
    return _NOTHING if count is None else f"{count / 2**20:,.1f} MiB"


def _grid(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = [":--", *["--:"] * (len(headers) - 1)]
    rows = [list(headers), rule, *([_escape(cell) for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _escape(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")


# Okabe and Ito's palette: distinguishable for the colour-blind too.
_PART_COLOURS = dict(zip(PARTS, ("#56B4E9", "#0072B2", "#009E73", "#D55E00", "#D0D0D0"), strict=True))
_GROUP_COLOURS = dict(
    zip(GROUPS, ("#0072B2", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D0D0D0", "#D55E00"), strict=True)
)
_WIDTH = 0.72  # of a bar


def plot_account(account: Account, path: Path) -> None:
    """Draws rounds by part above and, where they were profiled, by group of operators below, a column for each context.

    Raises:
        FileWriteError: the file could not be written.
    """
    contexts = list(dict.fromkeys(cell.context for cell in account.cells))
    profiled = any(cell.profiled for cell in account.cells)
    # Figure and canvas by hand, not by pyplot: the backend that a user has chosen stays chosen.
    figure = Figure(figsize=(2.6 + 3.6 * len(contexts), 7.2 if profiled else 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(account), x=0.01, ha="left", fontsize=12, weight="bold")
    panels = figure.subplots(1 + profiled, len(contexts), sharey=True, squeeze=False)
    for column, context in enumerate(contexts):
        cells = [cell for cell in account.cells if cell.context == context]
        _draw(panels[0, column], cells, lambda cell: cell.parts, _PART_COLOURS)
        panels[0, column].set_title(f"context {context:,} tokens", loc="left", fontsize=10)
        if profiled:
            _draw(panels[1, column], [cell for cell in cells if cell.profiled], seconds_by_operator, _GROUP_COLOURS)
        panels[-1, column].set_xlabel("rows verified")
    for line in panels:
        line[0].set_ylabel("ms a round")
        line[-1].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")


def _draw(
    axes: Axes, cells: Sequence[Cell], account: Callable[[Cell], dict[str, float]], colours: dict[str, str]
) -> None:
    """Stacks what `account` says of each cell, and marks the cells' floors."""
    accounts, places = [account(cell) for cell in cells], range(len(cells))
    bottoms = [0.0] * len(cells)
    for name, colour in colours.items():
        heights = [1e3 * each[name] for each in accounts]
        axes.bar(places, heights, _WIDTH, bottom=bottoms, color=colour, edgecolor="white", linewidth=0.4, label=name)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    floors = [1e3 * cell.floor_seconds for cell in cells]
    ends = [place - _WIDTH / 2 for place in places], [place + _WIDTH / 2 for place in places]
    axes.hlines(floors, *ends, color="black", linewidth=2, label="floor")
    axes.set_xticks(places, [str(cell.rows) for cell in cells])
    axes.grid(axis="y", color="#E5E5E5")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _title(account: Account) -> str:
    settings, machine = account.settings, account.machine
    place = machine.cpu if machine.device == "cpu" else machine.device
    said = f"Rounds of {settings['target']} with {settings['draft']}, {settings['dtype']}, {place}"
    return said if account.complete else f"INCOMPLETE RUN: {said}"

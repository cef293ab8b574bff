"""The account of a round's time as stacked bars, one a tree size, with the floor marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from controllers.evaluation.account import Account, Cell, seconds_by_operator
from env.files import atomic_path
from env.latency.account import PARTS
from env.latency.operators import GROUPS

__all__ = ["plot_account"]

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

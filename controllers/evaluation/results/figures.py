"""Figures: one style, drawn without pyplot so that the user's matplotlib backend stays, and saved as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specgym.controllers.evaluation.results.tables import cut
from specgym.env.common.files import atomic_path

# Okabe and Ito's palette: colour-blind readers can tell the colours apart.
BLUE, ORANGE, GREEN, SKY = "#0072B2", "#D55E00", "#009E73", "#56B4E9"
PINK, AMBER, YELLOW = "#CC79A7", "#E69F00", "#F0E442"
GREY, LIGHT_GREY = "#7F7F7F", "#D0D0D0"
SERIES = (BLUE, ORANGE, GREEN, PINK, AMBER, SKY)
"""colours of series that have no colour of their own, in this order"""
STAGES = (SKY, BLUE, GREEN, ORANGE, LIGHT_GREY)
"""colours of drafting, verifying, committing, choosing, and the rest of a round"""
_GRID = "#E5E5E5"


def new_figure(
    title: str,
    size: tuple[float, float],
    panels: tuple[int, int] = (1, 1),
    *,
    subtitle: str = "",
    footer: str = "",
    warning: str = "",
    **options: Any,
) -> tuple[Figure, Any]:
    """Makes a figure with its panels, an array of axes `[rows, columns]`.

    Args:
        title: the heading, at the top left.
        size: width and height [inch].
        panels: rows and columns of panels.
        subtitle: a line below the title.
        footer: small print at the bottom.
        warning: put before the footer, which then stands out.
        options: of `Figure.subplots`, such as ``sharey``.
    """
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    # A title of two lines makes room for the subtitle.
    figure.suptitle(f"{title}\n" if subtitle else title, x=0.01, ha="left", fontsize=14, weight="bold")
    if subtitle:
        figure.text(0.01, 1 - 0.52 / size[1], subtitle, ha="left", color="#444444")
    if footer or warning:
        text = " · ".join(filter(None, (warning, footer)))
        figure.supxlabel(text, x=0.01, ha="left", fontsize=8, color=ORANGE if warning else GREY)
    axes = figure.subplots(*panels, squeeze=False, **options)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_axisbelow(True)
        panel.grid(color=_GRID)
    return figure, axes


def origin(started_at: str, git_revision: str | None) -> str:
    """Returns when and from which code numbers come, as a footer."""
    commit, dash, state = (git_revision or "no revision").partition("-")
    return f"{started_at} · {commit[:12]}{dash}{state}"


def save_figure(figure: Figure, path: Path) -> None:
    """Writes the figure as a PNG, whole or not at all. Raises `FileWriteError`."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names the rows of a horizontal plot, the first at the top; the grid is left to the other axis."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")


def draw_interval(
    axes: Axes,
    height: float,
    value: float,
    interval: Sequence[float] | None,
    colour: str,
    *,
    label: str | None = None,
    digits: int = 2,
) -> None:
    """Draws a number as a dot on its interval, with the number, cut off, to the right of both."""
    low, high = interval or (value, value)
    axes.plot([low, high], [height, height], color=colour, linewidth=3, solid_capstyle="round", alpha=0.45, zorder=2)
    axes.plot([value], [height], "o", color=colour, markersize=8, zorder=3, label=label)
    place = (max(high, value), height)
    axes.annotate(cut(value, digits), place, (8, 0), textcoords="offset points", va="center", fontsize=9, weight="bold")

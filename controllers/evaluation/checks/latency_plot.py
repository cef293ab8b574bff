"""A latency profile at a glance: its curves, and the measured points that they were fitted to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from specgym.env.common.files import atomic_path
from specgym.env.latency.costs import RoundCosts
from specgym.env.latency.latency_profile import LatencyProfile, Point

_STAGES = {"root": "first draft level", "level": "further draft level", "verify": "verification"}
_COLOURS = ("#56B4E9", "#0072B2", "#009E73", "#D55E00", "#CC79A7")  # Okabe and Ito's palette, contexts in this order


def plot_profile(profile: LatencyProfile, path: Path) -> None:
    """Draws time by rows, a panel for every stage and way of decoding, as a PNG at `path`.

    Args:
        profile: curves, drawn as lines, and points, drawn as dots that grow with the number of measurements.
        path: where the PNG shall stand.

    Raises:
        FileWriteError: the file could not be written.
    """
    # Figure and canvas by hand, not by pyplot: the backend that a user has chosen stays chosen.
    figure = Figure(figsize=(12, 6.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(profile.origin), x=0.01, ha="left", fontsize=13, weight="bold")
    panels = figure.subplots(2, len(_STAGES), sharex="col", sharey="col")
    for greedy, line in zip((True, False), panels, strict=True):
        points = [point for point in profile.points if point.greedy == greedy]
        for stage, axes in zip(_STAGES, line, strict=True):
            _draw(axes, profile.costs(greedy), points, stage)
            axes.set_title(f"{_STAGES[stage]}, {'greedy' if greedy else 'sampled'}", loc="left", fontsize=10)
    for axes in panels[1]:  # after all is drawn: a limit that is set stays where it is
        axes.set_xlabel("rows")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    for axes in panels[:, 0]:
        axes.set_ylabel("ms")
    panels[0, -1].legend(title="context [tokens]", fontsize=8, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")


def _title(origin: dict[str, Any]) -> str:
    if "family" in origin:
        return f"Latency of the family {origin['family']}"
    place = origin["machine"]["device"]
    place = origin["machine"]["cpu"] if place == "cpu" else place
    return f"Latency: {origin['target']} with {origin['draft']}, {origin['dtype']}, {place}"


def _draw(axes: Axes, costs: RoundCosts, points: list[Point], stage: str) -> None:
    curve = getattr(costs, stage)
    for index, (context, seconds) in enumerate(zip(costs.contexts, curve.seconds, strict=True)):
        colour = _COLOURS[index % len(_COLOURS)]
        cells = [point for point in points if point.stage == stage and point.context == context]
        axes.plot(curve.rows, [1e3 * value for value in seconds], color=colour, linewidth=1.4, label=f"{context:,}")
        sizes = [15.0 * point.count**0.5 for point in cells]
        axes.scatter([p.rows for p in cells], [1e3 * p.seconds for p in cells], sizes, color=colour, alpha=0.5, lw=0)
    axes.grid(color="#E5E5E5")
    axes.spines[["top", "right"]].set_visible(False)

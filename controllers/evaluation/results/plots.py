"""Figures of a run: how much faster, where the time went, and how fast other libraries are."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specgym.controllers.evaluation.results import figures
from specgym.controllers.evaluation.results.schema import SHARES, Results
from specgym.controllers.evaluation.results.statistics import Interval, inverse
from specgym.controllers.evaluation.results.tables import cut, with_interval

_DARK = {"verify", "commit", "controller"}  # segments with white labels
_SMALLEST_LABEL = 4.5  # a smaller share has no room for its label [%]
_SLOWER = "#7FB3D5"  # peers slower than ours are drawn in a light blue


def plot_speedups(results: Results, path: Path) -> None:
    """Draws each controller's speed-up over the baseline with its 95 % interval, as a PNG.

    Raises:
        FileWriteError: the file could not be written.
    """
    compared = {
        name: summary
        for name, summary in results.controllers.items()
        if summary.speedup is not None and name != results.baseline
    }
    figure, axes = _canvas(results, f"Speed-up over {results.baseline}", len(compared))
    for height, summary in enumerate(compared.values()):
        colour = _verdict(summary.speedup_ci95, figures.BLUE, figures.ORANGE)
        figures.draw_interval(axes, height, summary.speedup or 1.0, summary.speedup_ci95, colour)
    if compared:
        axes.axvline(1.0, color="black", linewidth=1.2, zorder=1)
        rates = [f"{name}\n{cut(summary.tokens_per_second, 1)} tokens/s" for name, summary in compared.items()]
        figures.name_rows(axes, rates)
        axes.margins(x=0.12)  # room for the numbers on the right
        axes.set_xlabel(
            f"times the throughput of {results.baseline} on the same prompts, with 95 % interval\n"
            "(blue: faster, orange: slower, grey: undecided)"
        )
    else:
        _write(axes, f"No speed-ups: no controller shares a prompt with {results.baseline}.")
    figures.save_figure(figure, path)


def plot_time_shares(results: Results, path: Path) -> None:
    """Draws the shares of each controller's wall time as stacked bars, as a PNG.

    The axis names the runners that do not time their stages.

    Raises:
        FileWriteError: the file could not be written.
    """
    timed = {name: s.shares for name, s in results.controllers.items() if s.shares.get(SHARES[-1], 1.0) < 1.0}
    untimed = [name for name in results.controllers if name not in timed]
    figure, axes = _canvas(results, "Where the time goes", len(timed))
    if timed:
        _draw_shares(axes, timed)
        note = f" (not timed by stage: {', '.join(untimed)})" if untimed else ""
        axes.set_xlabel(f"% of wall time{note}")
        axes.legend(ncols=len(SHARES), loc="lower left", bbox_to_anchor=(0, 1), frameon=False, handlelength=1)
    else:
        _write(axes, "No controller timed its stages.")
    figures.save_figure(figure, path)


def plot_comparison(results: Results, path: Path) -> None:
    """Draws each throughput as a bar, and beside it ours over the peer's, as a PNG.

    Raises:
        FileWriteError: the file could not be written.
    """
    peers = results.peers
    measured = {name: inverse(s) for name, s in results.controllers.items() if s.tokens_per_second is not None}
    rates = [summary.tokens_per_second or 0.0 for summary in measured.values()]
    figure, axes = _canvas(results, "Throughput beside other libraries", len(measured))
    for height, (rate, (name, summary)) in enumerate(zip(rates, measured.items(), strict=True)):
        colour = _verdict(summary.speedup_ci95, _SLOWER, figures.ORANGE) if name in peers else figures.BLUE
        axes.barh(height, rate, height=0.62, color=colour)
        ratio = "" if name == results.baseline else f"   {with_interval(summary.speedup, summary.speedup_ci95)}"
        text = f"{cut(rate, 1)}{ratio}"
        axes.annotate(text, (rate, height), (5, 0), textcoords="offset points", va="center", fontsize=9)
    figures.name_rows(axes, list(measured))
    axes.set_xlim(0, 1.45 * max(rates, default=1.0))  # room for the ratios
    absent = [name for name, facts in peers.items() if facts.reason]
    axes.set_xlabel(
        f"tokens/s, and {results.baseline}'s throughput over the peer's with its 95 % interval\n"
        "(dark blue: ours, light blue: slower than ours, orange: faster, grey: undecided)"
        + (f"\ndid not run: {', '.join(absent)}" if absent else "")
    )
    figures.save_figure(figure, path)


def _verdict(interval: Interval | None, above: str, below: str) -> str:
    """Returns the colour of a ratio whose interval is above 1, below 1, or neither."""
    low, high = interval or (1.0, 1.0)
    return above if low > 1 else below if high < 1 else figures.GREY


def _draw_shares(axes: Axes, timed: dict[str, dict[str, float]]) -> None:
    lefts = [0.0] * len(timed)
    for part, colour in zip(SHARES, figures.STAGES, strict=True):
        widths = [100 * shares[part] for shares in timed.values()]
        bars = axes.barh(range(len(timed)), widths, 0.62, lefts, color=colour, edgecolor="white", label=part)
        labels = [f"{width:.0f}" if width >= _SMALLEST_LABEL else "" for width in widths]
        axes.bar_label(bars, labels, label_type="center", color="white" if part in _DARK else "black")
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    figures.name_rows(axes, list(timed))
    axes.set_xlim(0, 100)


def _canvas(results: Results, title: str, bars: int) -> tuple[Figure, Axes]:
    settings, machine, heat = results.settings, results.machine, results.settings.get("temperature")
    prompts = max((summary.prompts for summary in results.controllers.values()), default=0)
    facts = [
        str(settings.get("target", settings.get("model")) or "").rstrip("/").rpartition("/")[2],
        f"temperature {heat:g}" if isinstance(heat, int | float) else "",
        str(settings.get("dtype", "")).removeprefix("torch."),
        machine.cpu if results.kind == "compare" else machine.device,
        f"{results.suite}, {prompts} prompt{'s' * (prompts != 1)}",
    ]
    figure, axes = figures.new_figure(
        title,
        (8, 2.1 + 0.55 * max(bars, 1)),
        subtitle=" · ".join(filter(None, facts)),
        footer=figures.origin(results.started_at, results.git_revision),
        warning="" if results.complete else "INCOMPLETE RUN",
    )
    return figure, axes[0, 0]


def _write(axes: Axes, message: str) -> None:
    axes.text(0.5, 0.5, message, ha="center", va="center", transform=axes.transAxes)
    axes.set_axis_off()

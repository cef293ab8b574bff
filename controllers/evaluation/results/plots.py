"""Two figures that say at a glance what a run found: how much faster, and where the time went."""

from __future__ import annotations

from decimal import ROUND_FLOOR, Decimal
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from specgym.controllers.evaluation.results.schema import SHARES, ControllerSummary, Results
from specgym.env.common.files import atomic_path

# Okabe and Ito's palette: distinguishable for the colour-blind too.
_FASTER, _SLOWER, _UNDECIDED = "#0072B2", "#D55E00", "#7F7F7F"
_SHARE_COLOURS = dict(zip(SHARES, ("#56B4E9", "#0072B2", "#009E73", "#D55E00", "#D0D0D0"), strict=True))
_DARK = {"verify", "commit", "controller"}  # segments that want white figures
_SMALLEST_LABEL = 0.045  # a share below this has no room for its figure


def cut(value: float | None, digits: int, rounding: str = ROUND_FLOOR) -> str:
    """`value` with `digits` decimals, cut off and not rounded, so that no figure flatters; a dash for None."""
    # By way of the shortest decimal: 1.15 is meant as 1.15 and shall not become 1.14.
    return "-" if value is None else str(Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-digits), rounding))


def plot_speedups(results: Results, path: Path) -> None:
    """Draws every controller's speed-up over the baseline with its 95 % interval, as a PNG at `path`.

    Raises:
        FileWriteError: the file could not be written.
    """
    shown = {
        name: summary
        for name, summary in results.controllers.items()
        if summary.speedup is not None and name != results.baseline
    }
    figure, axes = _canvas(results, f"Speed-up over {results.baseline}", len(shown))
    if not shown:
        _say(axes, f"No speed-ups: no controller shares a prompt with {results.baseline}.")
    else:
        for height, summary in enumerate(shown.values()):
            _draw_speedup(axes, height, summary)
        axes.axvline(1.0, color="black", linewidth=1.2, zorder=1)
        names = [f"{name}\n{cut(summary.tokens_per_second, 1)} tokens/s" for name, summary in shown.items()]
        axes.set_yticks(range(len(shown)), names)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(*_limits(shown))
        axes.set_xlabel(
            f"times the throughput of {results.baseline} on the same prompts, with 95 % interval\n"
            "(blue: faster, orange: slower, grey: cannot be told)"
        )
        axes.grid(axis="x", color="#E5E5E5", zorder=0)
    _save(figure, path)


def plot_time_shares(results: Results, path: Path) -> None:
    """Draws where each controller's wall time went, as stacked bars in a PNG at `path`.

    Runners that do not time their stages are named below the bars.

    Raises:
        FileWriteError: the file could not be written.
    """
    timed = {name: s for name, s in results.controllers.items() if s.shares.get(SHARES[-1], 1.0) < 1.0}
    untimed = [name for name in results.controllers if name not in timed]
    figure, axes = _canvas(results, "Where the time goes", len(timed))
    if not timed:
        _say(axes, "No controller timed its stages.")
    else:
        _draw_shares(axes, timed)
        note = f" (not timed by stage: {', '.join(untimed)})" if untimed else ""
        axes.set_xlabel(f"% of wall time{note}")
        axes.legend(ncols=len(SHARES), loc="lower left", bbox_to_anchor=(0, 1), frameon=False, handlelength=1)
    _save(figure, path)


def _draw_speedup(axes: Axes, height: int, summary: ControllerSummary) -> None:
    assert summary.speedup is not None
    low, high = summary.speedup_ci95 or (summary.speedup, summary.speedup)
    colour = _UNDECIDED
    if summary.speedup_ci95 is not None:
        colour = _FASTER if low > 1 else _SLOWER if high < 1 else _UNDECIDED
    axes.plot([low, high], [height, height], color=colour, linewidth=3, solid_capstyle="round", alpha=0.45, zorder=2)
    axes.plot([summary.speedup], [height], "o", color=colour, markersize=9, zorder=3)
    end = (max(high, summary.speedup), height)
    axes.annotate(cut(summary.speedup, 2), end, (9, 0), textcoords="offset points", va="center", weight="bold")


def _draw_shares(axes: Axes, timed: dict[str, ControllerSummary]) -> None:
    heights = list(range(len(timed)))
    lefts = [0.0] * len(timed)
    for part, colour in _SHARE_COLOURS.items():
        widths = [100 * summary.shares[part] for summary in timed.values()]
        bars = axes.barh(heights, widths, left=lefts, height=0.62, color=colour, edgecolor="white", label=part)
        labels = [f"{width:.0f}" if width >= 100 * _SMALLEST_LABEL else "" for width in widths]
        axes.bar_label(bars, labels, label_type="center", color="white" if part in _DARK else "black")
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axes.set_yticks(heights, list(timed))
    axes.set_ylim(len(timed) - 0.5, -0.5)
    axes.set_xlim(0, 100)


def _limits(shown: dict[str, ControllerSummary]) -> tuple[float, float]:
    ends = [1.0, *(s.speedup for s in shown.values() if s.speedup is not None)]
    ends += [end for s in shown.values() for end in s.speedup_ci95 or ()]
    span = max(max(ends) - min(ends), 0.2)
    return min(ends) - 0.06 * span, max(ends) + 0.18 * span  # room for the value labels on the right


def _canvas(results: Results, title: str, bars: int) -> tuple[Figure, Axes]:
    # Figure and canvas by hand, not by pyplot: the backend that a user has chosen stays chosen.
    figure = Figure(figsize=(8, 2.1 + 0.55 * max(bars, 1)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}\n", x=0.01, ha="left", fontsize=14, weight="bold")
    figure.text(0.01, 1 - 0.52 / figure.get_figheight(), _subtitle(results), ha="left", color="#444444")
    revision = (results.git_revision or "no revision").partition("-")
    footer = f"{results.started_at} · {revision[0][:12]}{revision[1]}{revision[2]}"
    if not results.complete:
        footer = f"INCOMPLETE RUN · {footer}"
    figure.supxlabel(footer, x=0.01, ha="left", fontsize=8, color="#777777" if results.complete else "#D55E00")
    axes: Axes = figure.subplots()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    axes.set_axisbelow(True)
    return figure, axes


def _subtitle(results: Results) -> str:
    settings = results.settings
    model = settings.get("target", settings.get("model"))
    said = [str(model).rstrip("/").rpartition("/")[2]] if model else []
    said += [f"temperature {_number(settings['temperature'])}"] if "temperature" in settings else []
    said += [str(settings["dtype"]).removeprefix("torch.")] if "dtype" in settings else []
    prompts = max((summary.prompts for summary in results.controllers.values()), default=0)
    return " · ".join([*said, results.machine.device, f"{results.suite}, {prompts} prompt{'s' * (prompts != 1)}"])


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _say(axes: Axes, message: str) -> None:
    axes.text(0.5, 0.5, message, ha="center", va="center", transform=axes.transAxes)
    axes.set_axis_off()


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")

"""Figures of the study, each of which answers one question at a glance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from specgym.controllers.evaluation.results.plots import cut

# Okabe and Ito's palette: distinguishable for the colour-blind too.
_LEARNED, _RULE, _BOUND, _RIVAL = "#0072B2", "#7F7F7F", "#009E73", "#D55E00"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_BOUNDS = ("myopic", "clairvoyant")


def plot_ladder(record: Mapping[str, Any]) -> Figure:
    """How fast is every controller, over all machines and temperatures?"""
    told = record["overall"]
    rungs = {name: each for name, each in told["rungs"].items() if name not in (*_BOUNDS, "autoregressive")}
    rungs |= {name: each["over_texts"] for name, each in told["learned"].items()}
    rungs = dict(sorted(rungs.items(), key=lambda item: float(item[1]["ratio"])))
    rungs |= {name: told["rungs"][name] for name in _BOUNDS if name in told["rungs"]}
    count = len({cell["profile"] for cell in record["cells"]})
    figure, (axes,) = _canvas(record, f"How fast is each controller? Mean over {count} machines", 1, len(rungs))
    for height, (name, each) in enumerate(rungs.items()):
        colour = _LEARNED if name in told["learned"] else _BOUND if name in _BOUNDS else _RULE
        colour = _RIVAL if name in ("goodput", "best_static", "history") else colour
        _dot(axes, height, each, colour)
    _names(axes, list(rungs))
    axes.set_xlabel(
        "times the throughput of plain decoding, with 95 % interval over prompts\n"
        "(blue: learned, orange: the rules to beat, grey: other rules, green: seeing what will be accepted)"
    )
    return figure


def plot_kinds(record: Mapping[str, Any]) -> Figure:
    """On what kinds of task does learning pay?"""
    kinds = record["kinds"]
    shown = [name for name in ("history", "best_static", "goodput") if name in next(iter(kinds.values()))["rungs"]]
    shown += [record["chosen"], *(name for name in _BOUNDS[1:] if name in next(iter(kinds.values()))["rungs"])]
    figure, (axes,) = _canvas(record, "How fast is it on each kind of task?", 1, len(kinds) * 1.6)
    for number, name in enumerate(shown):
        values = [found["rungs"][name]["ratio"] for found in kinds.values()]
        heights = [height + (number - (len(shown) - 1) / 2) * 0.14 for height in range(len(kinds))]
        colour = _LEARNED if name == record["chosen"] else _BOUND if name in _BOUNDS else _COLOURS[number + 3]
        axes.plot(values, heights, "o", color=colour, markersize=8, label=name, zorder=3)
    axes.hlines(range(len(kinds)), *axes.get_xlim(), color="#F2F2F2", linewidth=22, zorder=0)
    _names(axes, [f"{kind}\n{found['prompts']} prompts" for kind, found in kinds.items()])
    axes.legend(ncols=len(shown), loc="lower left", bbox_to_anchor=(0, 1), frameon=False, handletextpad=0.2)
    axes.set_xlabel("times the throughput of plain decoding, mean over machines and temperatures")
    return figure


def plot_transfer(record: Mapping[str, Any]) -> Figure | None:
    """Does a policy work on a machine that it never saw?"""
    found = record["transfer"]
    if not found:
        return None
    figure, (axes,) = _canvas(record, "Does a policy work on a machine that it never saw?", 1, len(found) * 1.2)
    series = {"learned on all machines": ("seen", _BOUND), "never saw this one": ("never_seen", _LEARNED)}
    for shift, (label, (key, colour)) in zip((-0.12, 0.12), series.items(), strict=True):
        for height, each in enumerate(found):
            as_ratio = {"ratio": each[key]["mean"], "interval": each[key]["interval"]}
            _dot(axes, height + shift, as_ratio, colour, label=label if height == 0 else None)
    if all("goodput" in each for each in found):
        values = [each["goodput"]["ratio"] for each in found]
        axes.plot(values, range(len(found)), "|", color=_RIVAL, markersize=22, markeredgewidth=3, label="goodput")
    _names(axes, [each["profile"] for each in found])
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    axes.set_xlabel("times the throughput of plain decoding, with 95 % interval over seeds")
    return figure


def plot_ablations(record: Mapping[str, Any]) -> Figure:
    """What does a policy need to see, and what should it choose?"""
    panels = {"without a part of what it sees": record["groups"], "form of action, way to learn": record["forms"]}
    rows = max(len(found) for found in panels.values())
    figure, axes = _canvas(record, "What does a policy need?", len(panels), rows, wide=True)
    for each, (title, found) in zip(axes, panels.items(), strict=True):
        for height, told in enumerate(found.values()):
            (against,) = told["against"].values()
            ratio = {
                "ratio": 100 * (against["ratio"] - 1),
                "interval": against["interval"] and [100 * (end - 1) for end in against["interval"]],
            }
            _dot(each, height, ratio, _RULE if height == 0 else _LEARNED, digits=1)
        _names(each, list(found), line=0.0)
        (base,) = next(iter(found.values()))["against"]
        each.set_xlabel(f"% faster than {base}, same texts")
        each.set_title(title, loc="left", fontsize=10)
    return figure


def plot_curve(record: Mapping[str, Any]) -> Figure:
    """How much practice does it take?"""
    figure, axes = _canvas(record, "How much practice does learning take?", 2, 5, wide=True)
    for each, key, label in zip(
        axes, ("steps", "minutes"), ("rounds played", "minutes, updates included"), strict=True
    ):
        for (name, curve), colour in zip(record["curves"].items(), _COLOURS, strict=False):
            each.plot(curve[key], curve["mean"], color=colour, linewidth=2, label=name)
            each.fill_between(curve[key], curve["least"], curve["most"], color=colour, alpha=0.15, linewidth=0)
        each.set_xscale("log")
        each.set_xlabel(label)
        each.grid(color="#E5E5E5")
    axes[0].set_ylabel("validation throughput\n[tokens per plain step]")
    axes[0].legend(frameon=False, fontsize=8)
    axes[1].set_title("line: mean over seeds, band: all of them", loc="right", fontsize=8, color="#444444")
    return figure


FIGURES: dict[str, Callable[[Mapping[str, Any]], Figure | None]] = {
    "ladder.png": plot_ladder,
    "kinds.png": plot_kinds,
    "transfer.png": plot_transfer,
    "ablations.png": plot_ablations,
    "curve.png": plot_curve,
}
"""what draws each figure; None where there is nothing to draw"""


def _canvas(
    record: Mapping[str, Any], title: str, panels: int, rows: float, wide: bool = False
) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(11 if wide else 8, 2.0 + 0.36 * max(rows, 3)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}\n", x=0.01, ha="left", fontsize=14, weight="bold")
    settings = record["settings"]
    heats = " and ".join(f"{heat:g}" for heat in settings["temperatures"])
    said = f"{settings['target']} · temperature {heats} · {settings['test_texts']} texts of the test split"
    figure.text(0.01, 1 - 0.5 / figure.get_figheight(), said, ha="left", color="#444444")
    quick = "" if record["preset"] == "default" else "QUICK PRESET · "
    revision = (record["git_revision"] or "no revision").partition("-")
    footer = f"{quick}{record['started_at']} · {revision[0][:12]}{revision[1]}{revision[2]}"
    figure.supxlabel(footer, x=0.01, ha="left", fontsize=8, color="#777777" if not quick else "#D55E00")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for each in axes:
        each.spines[["top", "right", "left"]].set_visible(False)
        each.tick_params(left=False)
        each.set_axisbelow(True)
    return figure, list(axes)


def _dot(
    axes: Axes, height: float, each: Mapping[str, Any], colour: str, *, label: str | None = None, digits: int = 2
) -> None:
    low, high = each["interval"] or (each["ratio"], each["ratio"])
    axes.plot([low, high], [height, height], color=colour, linewidth=3, solid_capstyle="round", alpha=0.45, zorder=2)
    axes.plot([each["ratio"]], [height], "o", color=colour, markersize=7, zorder=3, label=label)
    end = (max(high, each["ratio"]), height)
    axes.annotate(cut(each["ratio"], digits), end, (6, 0), textcoords="offset points", va="center", fontsize=8)


def _names(axes: Axes, names: Sequence[str], line: float = 1.0) -> None:
    """Names beside the rows, and a line where nothing is gained."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.axvline(line, color="black", linewidth=1.2, zorder=1)
    axes.grid(axis="x", color="#E5E5E5", zorder=0)
    axes.margins(x=0.12)

"""Figures of the study; each answers one question at a glance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specgym.controllers.evaluation.results import figures
from specgym.controllers.evaluation.results.schema import CLAIRVOYANT, MYOPIC

_LEARNED, _RULE, _BOUND, _COMPARED = figures.BLUE, figures.GREY, figures.GREEN, figures.ORANGE
_BOUNDS = (MYOPIC, CLAIRVOYANT)

Record = Mapping[str, Any]
"""the study's record or a part of it, see `findings`"""


def plot_ladder(record: Record) -> Figure:
    """Answers: how fast is each controller, over all machines and temperatures?"""
    overall = record["overall"]
    rungs = {name: rung for name, rung in overall["rungs"].items() if name != "autoregressive"}
    rungs |= {name: policy["over_texts"] for name, policy in overall["learned"].items()}
    rungs = dict(sorted(rungs.items(), key=lambda item: (item[0] in _BOUNDS, float(item[1]["ratio"]))))
    count = len({cell["profile"] for cell in record["cells"]})
    figure, (axes,) = _canvas(record, f"How fast is each controller? Mean over {count} machines", len(rungs))
    colours = dict.fromkeys(overall["learned"], _LEARNED) | dict.fromkeys(_BOUNDS, _BOUND)
    colours |= dict.fromkeys(compared_rules(record), _COMPARED)
    for height, (name, rung) in enumerate(rungs.items()):
        figures.draw_interval(axes, height, rung["ratio"], rung["interval"], colours.get(name, _RULE))
    _name_rows(axes, rungs)
    axes.set_xlabel(
        "times the throughput of plain decoding, with 95 % interval over prompts\n"
        "(blue: learned, orange: the rules to beat, grey: other rules, green: bounds)"
    )
    return figure


def plot_kinds(record: Record) -> Figure:
    """Answers: on what kinds of task does learning pay?"""
    kinds = record["kinds"]
    colours = dict(zip(compared_rules(record), figures.SERIES[3:], strict=False))
    colours |= {record["chosen"]: _LEARNED, CLAIRVOYANT: _BOUND}
    figure, (axes,) = _canvas(record, "How fast is it on each kind of task?", len(kinds) * 1.6)
    for number, (name, colour) in enumerate(colours.items()):
        values = [numbers["rungs"][name]["ratio"] for numbers in kinds.values()]
        heights = [height + (number - (len(colours) - 1) / 2) * 0.14 for height in range(len(kinds))]
        axes.plot(values, heights, "o", color=colour, markersize=8, label=name, zorder=3)
    axes.hlines(range(len(kinds)), *axes.get_xlim(), color="#F2F2F2", linewidth=22, zorder=0)
    _name_rows(axes, {f"{kind}\n{numbers['prompts']} prompts": numbers for kind, numbers in kinds.items()})
    axes.legend(ncols=len(colours), loc="lower left", bbox_to_anchor=(0, 1), frameon=False, handletextpad=0.2)
    axes.set_xlabel("times the throughput of plain decoding, mean over machines and temperatures")
    return figure


def plot_transfer(record: Record) -> Figure | None:
    """Answers: does a policy work on a machine that it never saw?"""
    machines = record["transfer"]
    if not machines:
        return None
    figure, (axes,) = _canvas(record, "Does a policy work on a machine that it never saw?", len(machines) * 1.2)
    series = (("seen", "learned on all machines", _BOUND, -0.12), ("never_seen", "never saw this one", _LEARNED, 0.12))
    for key, label, colour, shift in series:
        for height, machine in enumerate(machines):
            numbers = machine[key]
            name = label if height == 0 else None  # one entry of the legend
            figures.draw_interval(axes, height + shift, numbers["mean"], numbers["interval"], colour, label=name)
    if all("goodput" in machine for machine in machines):
        values = [machine["goodput"]["ratio"] for machine in machines]
        axes.plot(values, range(len(machines)), "|", color=_COMPARED, markersize=22, label="goodput", mew=3)
    _name_rows(axes, {machine["profile"]: machine for machine in machines})
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    axes.set_xlabel("times the throughput of plain decoding, with 95 % interval over seeds")
    return figure


def plot_ablations(record: Record) -> Figure:
    """Answers: what does a policy need to see, and what should it choose?"""
    panels = {"without a part of what it sees": record["groups"], "form of action, way to learn": record["forms"]}
    figure, all_axes = _canvas(record, "What does a policy need?", max(map(len, panels.values())), panels=2)
    for axes, (title, policies) in zip(all_axes, panels.items(), strict=True):
        for height, policy in enumerate(policies.values()):
            ((base, against),) = policy["against"].items()
            ratio, *ends = (100 * (value - 1) for value in (against["ratio"], *(against["interval"] or ())))
            figures.draw_interval(axes, height, ratio, ends, _RULE if height == 0 else _LEARNED, digits=1)
        _name_rows(axes, policies, line=0.0)
        axes.set_xlabel(f"% faster than {base}, same texts")
        axes.set_title(title, loc="left", fontsize=10)
    return figure


def plot_curve(record: Record) -> Figure:
    """Answers: how much practice does learning take?"""
    figure, all_axes = _canvas(record, "How much practice does learning take?", 5, panels=2)
    labels = {"steps": "rounds played", "minutes": "minutes, updates included"}
    for axes, (key, label) in zip(all_axes, labels.items(), strict=True):
        for (name, curve), colour in zip(record["curves"].items(), figures.SERIES, strict=False):
            axes.plot(curve[key], curve["mean"], color=colour, linewidth=2, label=name)
            axes.fill_between(curve[key], curve["least"], curve["most"], color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.set_xlabel(label)
    all_axes[0].set_ylabel("validation throughput\n[tokens per plain step]")
    all_axes[0].legend(frameon=False, fontsize=8)
    all_axes[1].set_title("line: mean over seeds, band: all of them", loc="right", fontsize=8, color="#444444")
    return figure


FIGURES: dict[str, Callable[[Record], Figure | None]] = {
    "ladder.png": plot_ladder,
    "kinds.png": plot_kinds,
    "transfer.png": plot_transfer,
    "ablations.png": plot_ablations,
    "curve.png": plot_curve,
}
"""the function that draws each figure; it returns None if there is nothing to draw"""


def compared_rules(record: Record) -> list[str]:
    """Names of the rules that learned policies are compared with."""
    return list(record["overall"]["learned"][record["chosen"]]["against"])


def _canvas(record: Record, title: str, rows: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    settings = record["settings"]
    heats = " and ".join(f"{heat:g}" for heat in settings["temperatures"])
    figure, axes = figures.new_figure(
        title,
        (8 if panels == 1 else 11, 2.0 + 0.36 * max(rows, 3)),
        (1, panels),
        subtitle=f"{settings['target']} · temperature {heats} · {settings['test_texts']} texts of the test split",
        footer=figures.origin(record["started_at"], record["git_revision"]),
        warning="" if record["preset"] == "default" else "QUICK PRESET",
    )
    return figure, list(axes[0])


def _name_rows(axes: Axes, rows: Mapping[str, object], line: float = 1.0) -> None:
    """Names the rows, and draws a line where nothing is gained."""
    figures.name_rows(axes, list(rows))
    axes.axvline(line, color="black", linewidth=1.2, zorder=1)
    axes.margins(x=0.12)

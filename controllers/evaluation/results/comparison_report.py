"""The field side by side, as people read it: how many times our throughput is a peer's, and why some did not run.

Speed-ups in the record are a peer's throughput over ours, as everywhere; here they are turned over. An interval of
percentiles may be turned over end by end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from decimal import ROUND_FLOOR
from pathlib import Path
from typing import Any, TypeVar

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from specgym.controllers.evaluation.results.plots import cut
from specgym.controllers.evaluation.results.schema import CategorySummary, ControllerSummary, PeerFacts, Results
from specgym.env.common.files import atomic_path

COMPARISON_LEGEND = (
    "Ours/peer: throughput of {baseline} over that of the peer on the same prompts, with a 95 % interval; over 1, ours "
    "is faster. τ: tokens per target forward. Same: greedy outputs identical to those of the peer's own plain decoding."
)
_HEADERS = ("peer", "tokens/s", "ours/peer", "τ", "same", "prompts", "failed", "did not run because")
_OURS, _SLOWER, _FASTER, _UNDECIDED = "#0072B2", "#7FB3D5", "#D55E00", "#9A9A9A"

Summary = TypeVar("Summary", ControllerSummary, CategorySummary)


def peer_facts(results: Results) -> dict[str, PeerFacts]:
    """What the record knows of each peer."""
    return {name: PeerFacts(**facts) for name, facts in results.settings.get("peers", {}).items()}


def turned_over(results: Results) -> Results:
    """The same record with our throughput over the peer's in place of the peer's over ours."""
    summaries = {}
    for name, summary in results.controllers.items():
        parts = {category: _turn(part) for category, part in summary.by_category.items()}
        summaries[name] = dataclasses.replace(_turn(summary), by_category=parts)
    return dataclasses.replace(results, controllers=summaries)


def comparison_lines(results: Results) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Header and cells of the main table: one line a peer or controller, those that did not run included."""
    facts = peer_facts(results)
    return _HEADERS, [
        _cells(name, summary, facts.get(name)) for name, summary in turned_over(results).controllers.items()
    ]


def peer_lines(results: Results) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Header and cells of the table that says what each peer is."""
    return ("peer", "library", "given", "compared with"), [
        (name, f"{facts.package} {facts.version or ''}".strip(), facts.given, facts.reference)
        for name, facts in peer_facts(results).items()
    ]


def plot_comparison(results: Results, path: Path) -> None:
    """Draws every throughput as a bar, and beside it how many times ours is the peer's, as a PNG at `path`.

    Raises:
        FileWriteError: the file could not be written.
    """
    over = turned_over(results).controllers
    shown = {name: summary for name, summary in over.items() if summary.tokens_per_second is not None}
    # Figure and canvas by hand, not by pyplot: the backend that a user has chosen stays chosen.
    figure = Figure(figsize=(9, 2.2 + 0.42 * max(len(over), 1)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_subtitle(results), x=0.01, ha="left", fontsize=11, weight="bold")
    axes: Axes = figure.subplots()
    for height, (name, summary) in enumerate(shown.items()):
        _draw(axes, height, summary, results.baseline == name, name in peer_facts(results))
    axes.set_yticks(range(len(shown)), list(shown))
    axes.set_ylim(len(shown) - 0.4, -0.6)
    fastest = max((summary.tokens_per_second or 0.0 for summary in shown.values()), default=1.0)
    axes.set_xlim(0, 1.45 * fastest)  # room for the ratios
    axes.set_xlabel(
        f"tokens/s, and {results.baseline}'s throughput over the peer's with its 95 % interval\n{_note(results)}"
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")


def _cells(name: str, summary: ControllerSummary, facts: PeerFacts | None) -> Sequence[str]:
    same = "-" if summary.identical_outputs is None else f"{summary.identical_outputs}/{summary.compared_outputs}"
    return (
        name,
        cut(summary.tokens_per_second, 1),
        _ratio(summary),
        cut(summary.mean_accepted_tokens, 2),
        same,
        str(summary.prompts),
        str(summary.failures),
        facts.reason if facts is not None and facts.reason else "-",
    )


def _ratio(summary: ControllerSummary) -> str:
    if summary.speedup_ci95 is None:
        return cut(summary.speedup, 2)
    low, high = summary.speedup_ci95
    return f"{cut(summary.speedup, 2)} [{cut(low, 2)}, {cut(high, 2)}]"


def _turn(summary: Summary) -> Summary:
    interval = summary.speedup_ci95
    changes: dict[str, Any] = {
        "speedup": 1 / summary.speedup if summary.speedup else None,
        "speedup_ci95": (1 / interval[1], 1 / interval[0]) if interval else None,
    }
    return dataclasses.replace(summary, **changes)


def _draw(axes: Axes, height: int, summary: ControllerSummary, is_best: bool, is_peer: bool) -> None:
    assert summary.tokens_per_second is not None
    low, high = summary.speedup_ci95 or (0.0, float("inf"))
    colour = _FASTER if high < 1 else _SLOWER if low > 1 else _UNDECIDED
    axes.barh(height, summary.tokens_per_second, height=0.62, color=colour if is_peer else _OURS)
    text = cut(summary.tokens_per_second, 1, ROUND_FLOOR)
    if not is_best:
        text += f"   {_ratio(summary)}"
    place = (summary.tokens_per_second, height)
    axes.annotate(text, place, (5, 0), textcoords="offset points", va="center", fontsize=9)


def _subtitle(results: Results) -> str:
    settings = results.settings
    target = str(settings.get("target", "")).rstrip("/").rpartition("/")[2]
    prompts = max((summary.prompts for summary in results.controllers.values()), default=0)
    said = [target, f"temperature {settings.get('temperature', 0):g}", str(settings.get("dtype", ""))]
    return " · ".join([*said, results.machine.cpu, f"{prompts} prompt{'s' * (prompts != 1)}"])


def _note(results: Results) -> str:
    absent = [name for name, facts in peer_facts(results).items() if facts.reason]
    said = ["dark blue: ours; light blue: slower than ours; orange: faster; grey: cannot be told"]
    said += [f"did not run: {', '.join(absent)}"] if absent else []
    said += [] if results.complete else ["INCOMPLETE RUN"]
    return "\n".join(said)

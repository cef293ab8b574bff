"""Results as people read them: tables, Markdown, CSV and figures, all derived from the JSON.

Rounding is never in our favour. Throughputs, speed-ups, accepted tokens and acceptance are cut off, an interval's upper
end too. The controller's share of the time is rounded up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from decimal import ROUND_CEILING, ROUND_FLOOR
from pathlib import Path

from specgym.controllers.evaluation.results import schema
from specgym.controllers.evaluation.results.plots import plot_comparison, plot_speedups, plot_time_shares
from specgym.controllers.evaluation.results.schema import ControllerSummary, PromptRow, Results
from specgym.controllers.evaluation.results.statistics import inverse
from specgym.controllers.evaluation.results.tables import INCOMPLETE, Table, cut, markdown_page, with_interval
from specgym.env.common.files import write_text

_LEGEND = (
    "Speed-up: throughput over that of {baseline} on the same prompts, with a 95 % interval. "
    "τ: tokens per target forward. Accepted: of the drafted tokens. Tree: draft tokens a round. "
    "Time %: draft/verify/commit/controller. Same: outputs identical to plain decoding's."
)
_LADDER_LEGEND = (
    "Predicted from recorded texts and a latency profile, the prompt's reading left out. Speed-up: throughput over "
    "that of {baseline} on the same texts, with a 95 % interval. τ: tokens per target forward. Accepted: of the "
    "drafted tokens. Tree: draft tokens a round. Gain: share of the clairvoyant's speed-up past 1."
)
_COMPARISON_LEGEND = (
    "Ours/peer: throughput of {baseline} over that of the peer on the same prompts, with a 95 % interval; over 1, ours "
    "is faster. τ: tokens per target forward. Same: greedy outputs identical to those of the peer's own plain decoding."
)
_CUT_OFF = (
    "Numbers are cut off, not rounded. "
    "An interval from fewer than about 20 prompts is too narrow: it misses the truth more than 1 time in 10."
)
_SEQUENTIAL = 0.05  # a larger gain of whole-text choices makes planning ahead worth while
_DIFFERENCES_SHOWN = 20
_FIGURES = {"speedup.png": plot_speedups, "time_shares.png": plot_time_shares, "comparison.png": plot_comparison}


def table(results: Results) -> Table:
    """Returns the summary, one line a controller. Its caption explains the columns."""
    controllers, first, legend, last = results.controllers, "controller", _LEGEND, {}
    headers: Sequence[str] = ("tokens/s", "speed-up", "τ", "accepted", "tree")
    if results.kind == "compare":
        controllers = {name: inverse(summary) for name, summary in controllers.items()}
        first, legend = "peer", _COMPARISON_LEGEND
        headers, peers = ("tokens/s", "ours/peer", "τ", "same", "prompts", "failed"), results.peers
        last["did not run because"] = [peers[name].reason if name in peers else None for name in controllers]
    elif results.is_ladder:
        legend = _LADDER_LEGEND
        best = controllers[schema.CLAIRVOYANT].speedup
        last["gain"] = [_gain(summary.speedup, best) for summary in controllers.values()]
    else:
        headers = (*headers, "time %", "same", *(["failed"] if results.failures else []))
    cells = [[_CELLS[header](summary) for header in headers] for summary in controllers.values()]
    rows = [(name, *line, *ends) for name, line, *ends in zip(controllers, cells, *last.values(), strict=True)]
    heat = results.settings.get("temperature")
    title = f"{results.kind} · {results.suite}" + (f" · temperature {heat:g}" if isinstance(heat, int | float) else "")
    caption, warning = legend.format(baseline=results.baseline), "" if results.complete else INCOMPLETE
    return Table((first, *headers, *last), rows, title, caption, warning)


def planning(results: Results) -> str:
    """Returns what planning ahead is worth, in a sentence; empty without both bounds.

    The myopic bound takes the best choice of every round, the clairvoyant the best choices for the whole text.
    """
    bounds = (results.controllers.get(name) for name in (schema.CLAIRVOYANT, schema.MYOPIC))
    best, myopic = (bound.speedup if bound else None for bound in bounds)
    if not (best and myopic):
        return ""
    gain = best / myopic - 1
    verdict = "round by round" if gain < _SEQUENTIAL else "a sequential problem"
    return (
        f"The best choices for the whole text are {cut(100 * gain, 1, ROUND_CEILING)} % faster than the best choice of "
        f"every round, so control is here {verdict}."
    )


def agreement(results: Results) -> str:
    """Returns how far another precision agrees with the main one, in a sentence; empty if none was measured."""
    numbers = results.settings.get("agreement")
    if numbers is None:
        return ""
    worse = numbers["nats"] > 0
    nats = cut(abs(numbers["nats"]), 3, ROUND_CEILING if worse else ROUND_FLOOR)
    return (
        f"In {results.settings['beside']} the target has the same likeliest token at {cut(100 * numbers['same'], 1)} % "
        f"of {numbers['positions']:,} positions of the prompts, and predicts their tokens {nats} nats "
        f"{'worse' if worse else 'better'} on average."
    )


def markdown(results: Results) -> str:
    """Returns the page: table, speed-ups by category, differing outputs, failures, settings, machine and versions."""
    failures = [(failure.controller, failure.prompt_id, failure.repeat, failure.error) for failure in results.failures]
    peers = [
        (name, f"{facts.package} {facts.version or ''}".strip(), facts.given, facts.reference)
        for name, facts in results.peers.items()
    ]
    summary = table(results)
    blocks: list[str | Table] = [
        summary.markdown(),
        f"{summary.caption} {_CUT_OFF}",
        planning(results),
        agreement(results),
        _categories(results),
        Table(("peer", "library", "given", "compared with"), peers, "Peers", numbers=False),
        _differences(results),
        Table(("controller", "prompt", "repeat", "error"), failures, "Failures", numbers=False),
    ]
    settings = {key: value for key, value in results.settings.items() if key != "peers"}
    facts = {**vars(results), "settings": settings, "machine": vars(results.machine)}
    title = f"{results.kind.capitalize()}: {results.suite}"
    return markdown_page(title, facts, blocks, summary.warning)


def csv_text(results: Results) -> str:
    """Returns one line a row with every field; times of stages in columns `seconds_<stage>` [s], empty if unknown."""
    names = [field.name for field in fields(PromptRow) if field.name != "seconds_by_part"]
    rows = [
        [*(getattr(row, name) for name in names), *(row.seconds_by_part.get(key) for key in schema.STAGE_KEYS)]
        for row in results.rows
    ]
    return Table([*names, *(f"seconds_{key}" for key in schema.STAGE_KEYS)], rows).csv()


def write_results(results: Results, folder: Path, plots: bool = True) -> None:
    """Writes `results.json`, then `.csv`, `.md` and the figures derived from it, each atomically.

    Without `plots`, figures of an earlier run in `folder` are removed: they would contradict the new numbers. Predicted
    times have no shares to draw.

    Raises:
        FileWriteError: a file could not be written; its previous version is untouched.
    """
    write_text(folder / "results.json", schema.to_json(results))
    write_text(folder / "results.csv", csv_text(results))
    write_text(folder / "results.md", markdown(results))
    drawn = ["comparison.png"] if results.kind == "compare" else ["speedup.png", "time_shares.png"]
    for name, plot in _FIGURES.items():
        if plots and name in drawn[: 1 if results.is_ladder else None]:
            plot(results, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def load_results(path: Path) -> Results:
    """Reads a `results.json`. Raises `ParameterError` that names a file that is missing, cut short or does not fit."""
    return schema.read_record(Results, path)


def _gain(speedup: float | None, best: float | None) -> str | None:
    return None if speedup is None or best is None or best <= 1 else cut((speedup - 1) / (best - 1), 2)


def _shares(summary: ControllerSummary) -> str | None:
    stages = [100 * summary.shares.get(stage, 0.0) for stage in ("draft", "verify", "commit")]
    controller = cut(100 * (summary.controller_share or 0.0), 1, ROUND_CEILING)
    return "/".join([*(f"{share:.0f}" for share in stages), controller]) if any(stages) else None


def _speedup(summary: ControllerSummary) -> str:
    return with_interval(summary.speedup, summary.speedup_ci95)


_CELLS: dict[str, Callable[[ControllerSummary], object]] = {
    "tokens/s": lambda summary: cut(summary.tokens_per_second, 1),
    "speed-up": _speedup,
    "ours/peer": _speedup,
    "τ": lambda summary: cut(summary.mean_accepted_tokens, 2),
    "accepted": lambda summary: cut(summary.acceptance_rate, 3),
    "tree": lambda summary: cut(summary.mean_tree_size, 1),
    "time %": _shares,
    "same": lambda s: None if s.identical_outputs is None else f"{s.identical_outputs}/{s.compared_outputs}",
    "prompts": lambda summary: summary.prompts,
    "failed": lambda summary: summary.failures,
}
"""what stands in each column of the main table"""


def _categories(results: Results) -> Table:
    compare = results.kind == "compare"
    columns = [summary.by_category for summary in results.controllers.values()]
    rows = []
    for category in sorted(set().union(*columns)):
        parts = [column.get(category) for column in columns]
        ratios = [inverse(part) if part and compare else part for part in parts]
        cells = [part and with_interval(part.speedup, part.speedup_ci95) for part in ratios]
        rows.append((category, max(part.prompts for part in parts if part), *cells))
    title = "Ours/peer by category" if compare else "Speed-up by category"
    return Table(("category", "prompts", *results.controllers), rows, title)


def _differences(results: Results) -> Table:
    """Outputs that differ from plain decoding's; repeats that differ at the same token are one line."""
    gaps: dict[tuple[object, ...], float | None] = {}
    for row in results.rows:
        if row.identical is False:
            gaps.setdefault((row.controller, row.prompt_id, row.first_difference), row.top2_gap)
    rows = [(*difference, None if gap is None else f"{gap:.3g}") for difference, gap in gaps.items()]
    shown = rows[:_DIFFERENCES_SHOWN]
    if len(rows) > len(shown):
        shown.append((f"and {len(rows) - len(shown)} more in results.csv", "", "", ""))
    headers = ("controller", "prompt", "first differing token", "target's top-2 logit gap there")
    return Table(headers, shown, "Outputs that differ from plain decoding's", numbers=False)

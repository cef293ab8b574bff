"""Results as people read them: a terminal table, Markdown, CSV and figures, beside the JSON that is the truth.

Rounding is never in our favour: throughputs, speed-ups, accepted tokens and acceptance are cut off (so is an
interval's upper end), the controller's share of the time is rounded up.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from decimal import ROUND_CEILING, ROUND_FLOOR
from pathlib import Path
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

from specgym.controllers.evaluation.results.comparison_report import (
    COMPARISON_LEGEND,
    comparison_lines,
    peer_lines,
    plot_comparison,
    turned_over,
)
from specgym.controllers.evaluation.results.plots import cut, plot_speedups, plot_time_shares
from specgym.controllers.evaluation.results.schema import STAGE_KEYS, ControllerSummary, PromptRow, Results
from specgym.env.common.errors import ParameterError
from specgym.env.common.files import write_text

_NOTHING = "-"
_INCOMPLETE = "INCOMPLETE: the run was stopped before its end; these numbers are of the part that was measured."
_HEADERS = ("controller", "tokens/s", "speed-up", "τ", "accepted", "tree", "time %", "same")
_LEGEND = (
    "Speed-up: throughput over that of {baseline} on the same prompts, with a 95 % interval. "
    "τ: tokens per target forward. Accepted: of the drafted tokens. Tree: draft tokens a round. "
    "Time %: draft/verify/commit/controller. Same: outputs identical to plain decoding's."
)
_LADDER_HEADERS = ("controller", "tokens/s", "speed-up", "τ", "accepted", "tree", "gain")
_LADDER_LEGEND = (
    "Predicted from recorded texts and a latency profile, the prompt's reading left out. Speed-up: throughput over "
    "that of {baseline} on the same texts, with a 95 % interval. τ: tokens per target forward. Accepted: of the "
    "drafted tokens. Tree: draft tokens a round. Gain: share of the clairvoyant's speed-up past 1."
)
_BOUND, _SHORT_SIGHTED = "clairvoyant", "myopic"
_SEQUENTIAL = 0.05  # from a gain of this share on, planning ahead is called worth while
_DIFFERENCES_SHOWN = 20
_FIGURES = {"speedup.png": plot_speedups, "time_shares.png": plot_time_shares, "comparison.png": plot_comparison}
_NARROW = "An interval from fewer than about 20 prompts is too narrow: it misses the truth more than 1 time in 10."


def table(results: Results) -> Table:
    """The summary as a table for the terminal: one line a controller.

    Columns: throughput [tokens/s], speed-up with its 95 % interval, mean accepted tokens τ, acceptance rate, mean tree
    size [tokens], shares of the wall time, identical outputs of those compared, and failures if there are any.
    """
    caption = Text(_legend(results), style="dim")
    if not results.complete:
        caption = Text(f"{_INCOMPLETE}\n", style="bold red").append(caption)
    shown = Table(
        title=Text(_title(results)),
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    headers, lines = _summary_lines(results)
    for index, header in enumerate(headers):
        # In a log of 80 columns the interval moves below its speed-up and long names fold; no number is ever cropped.
        shrinks = {"controller": 14, "speed-up": 12, "peer": 12, "ours/peer": 12, "did not run because": 19}
        least = shrinks.get(header, max(len(header), *(len(line[index]) for line in lines), 0))
        justify: Literal["left", "right"] = "left" if index == 0 else "right"
        shown.add_column(Text(header), justify=justify, overflow="fold", min_width=least)
    for line in lines:
        shown.add_row(*(Text(cell) for cell in line))
    return shown


def summary(results: Results) -> str:
    """The table alone, in Markdown, for a page that shows several."""
    return _table(*_summary_lines(results), numbers=True)


def planning(results: Results) -> str:
    """What looking ahead is worth, in a sentence; empty where it was not measured.

    The myopic bound takes the best choice of every round, the clairvoyant the best choices for the whole text.
    """
    speedups = [results.controllers[name].speedup for name in (_BOUND, _SHORT_SIGHTED) if name in results.controllers]
    if len(speedups) < 2 or not all(speedups):
        return ""
    gain = float(speedups[0] or 0) / float(speedups[1] or 1) - 1
    verdict = "round by round" if gain < _SEQUENTIAL else "a sequential problem"
    return (
        f"The best choices for the whole text are {cut(100 * gain, 1, ROUND_CEILING)} % faster than the best choice of "
        f"every round, so control is here {verdict}."
    )


def agreement(results: Results) -> str:
    """How far another precision is the same model, in a sentence; empty where there was none."""
    found = results.settings.get("agreement")
    if found is None:
        return ""
    worse = found["nats"] > 0
    nats = cut(abs(found["nats"]), 3, ROUND_CEILING if worse else ROUND_FLOOR)
    return (
        f"In {results.settings['beside']} the target has the same likeliest token at {cut(100 * found['same'], 1)} % "
        f"of {found['positions']:,} positions of the prompts, and foretells their tokens by {nats} nats "
        f"{'worse' if worse else 'better'} on average."
    )


def markdown(results: Results) -> str:
    """The same table with settings, machine, versions, speed-ups by category, differing outputs and failures."""
    revision = results.git_revision or "not a git checkout"
    blocks = [f"# {results.kind.capitalize()}: {results.suite}"]
    blocks += [] if results.complete else [f"**{_INCOMPLETE}**"]
    blocks += [
        f"Started {results.started_at}, revision {revision}.",
        f"```\n{results.command}\n```",
        _table(*_summary_lines(results), numbers=True),
        f"{_legend(results)} Numbers are cut off, not rounded. {_NARROW}",
        *filter(None, (planning(results), agreement(results))),
        *_category_section(results),
        *_section("Peers", *(peer_lines(results) if _is_comparison(results) else ((), []))),
        *_section("Outputs that differ from plain decoding's", *_difference_lines(results)),
        *_section("Failures", ("controller", "prompt", "repeat", "error"), _failure_lines(results)),
        *_section("Settings", ("setting", "value"), _setting_lines(results)),
        *_section("Machine", ("what", "value"), [(key, _value(value)) for key, value in vars(results.machine).items()]),
        *_section("Versions", ("library", "version"), list(results.versions.items())),
    ]
    return "\n\n".join(blocks) + "\n"


def csv_text(results: Results) -> str:
    """One line a row with every field; stage times in columns `seconds_<stage>` [s], what is unknown left empty."""
    names = [field.name for field in fields(PromptRow) if field.name != "seconds_by_part"]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*names, *(f"seconds_{key}" for key in STAGE_KEYS)])
    for row in results.rows:
        counts = (getattr(row, name) for name in names)
        writer.writerow([*counts, *(row.seconds_by_part.get(key) for key in STAGE_KEYS)])
    return stream.getvalue()


def write_results(results: Results, folder: Path, plots: bool = True) -> None:
    """Writes `results.json`, then `.csv`, `.md` and its figures made from it, each atomically.

    Without `plots`, figures of an earlier run in `folder` are removed: they would contradict the new numbers. Where
    times are predicted there are no shares of the time to draw.

    Raises:
        FileWriteError: a file could not be written; the version of it that stood there is untouched.
    """
    write_text(folder / "results.json", results.to_json())
    write_text(folder / "results.csv", csv_text(results))
    write_text(folder / "results.md", markdown(results))
    for name, plot in _FIGURES.items():
        if plots and name in _figures(results):
            plot(results, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def load_results(path: Path) -> Results:
    """Reads a `results.json`.

    Raises:
        ParameterError: no such file, or one that is cut short or does not fit the schema; the message names it.
    """
    try:
        return Results.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ParameterError(
            f"Could not read {path}: {reason}. Give the results.json that a run has written."
        ) from error
    except UnicodeDecodeError as error:
        raise ParameterError(f"{path}: expected UTF-8 text, came other bytes. Give a results.json.") from error
    except ParameterError as error:
        raise ParameterError(f"{path}: {error}") from error


def _title(results: Results) -> str:
    heat = results.settings.get("temperature")
    return f"{results.kind} · {results.suite}" + (f" · temperature {heat:g}" if isinstance(heat, int | float) else "")


def _legend(results: Results) -> str:
    legend = _LADDER_LEGEND if _is_ladder(results) else COMPARISON_LEGEND if _is_comparison(results) else _LEGEND
    return legend.format(baseline=results.baseline)


def _figures(results: Results) -> set[str]:
    """The figures that such a record has."""
    if _is_comparison(results):
        return {"comparison.png"}
    return {"speedup.png"} if _is_ladder(results) else {"speedup.png", "time_shares.png"}


def _is_comparison(results: Results) -> bool:
    """Whether other libraries were measured too: then ratios are ours over theirs."""
    return results.kind == "compare"


def _is_ladder(results: Results) -> bool:
    """Whether there is a clairvoyant to measure against: then nothing was timed, and no output can differ."""
    return results.kind == "evaluation" and _BOUND in results.controllers


def _gain(speedup: float | None, best: float | None) -> str:
    return _NOTHING if speedup is None or best is None or best <= 1 else cut((speedup - 1) / (best - 1), 2)


def _summary_lines(results: Results) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Header and cells of the main table; a column for failures stands only where there are some."""
    if _is_comparison(results):
        return comparison_lines(results)
    lines = [_cells(name, summary) for name, summary in results.controllers.items()]
    if _is_ladder(results):
        best = results.controllers[_BOUND].speedup
        gains = [_gain(summary.speedup, best) for summary in results.controllers.values()]
        return _LADDER_HEADERS, [(*line[:6], gain) for line, gain in zip(lines, gains, strict=True)]
    if not results.failures:
        return _HEADERS, list(lines)
    failed = [str(summary.failures) for summary in results.controllers.values()]
    return (*_HEADERS, "failed"), [(*line, count) for line, count in zip(lines, failed, strict=True)]


def _cells(name: str, summary: ControllerSummary) -> Sequence[str]:
    stages = ("draft", "verify", "commit")
    shares = [f"{100 * summary.shares[stage]:.0f}" for stage in stages if stage in summary.shares]
    if summary.controller_share is not None:
        shares.append(cut(100 * summary.controller_share, 1, ROUND_CEILING))
    timed = any(summary.shares.get(stage) for stage in stages)
    same = _NOTHING if summary.identical_outputs is None else f"{summary.identical_outputs}/{summary.compared_outputs}"
    return (
        name,
        cut(summary.tokens_per_second, 1),
        speedup_cell(summary.speedup, summary.speedup_ci95),
        cut(summary.mean_accepted_tokens, 2),
        cut(summary.acceptance_rate, 3),
        cut(summary.mean_tree_size, 1),
        "/".join(shares) if timed else _NOTHING,
        same,
    )


def _category_lines(results: Results) -> tuple[Sequence[str], list[Sequence[str]]]:
    names = list(results.controllers)
    sizes: dict[str, int] = {}
    for summary in results.controllers.values():
        for category, part in summary.by_category.items():
            sizes[category] = max(sizes.get(category, 0), part.prompts)
    lines: list[Sequence[str]] = []
    for category, size in sorted(sizes.items()):
        parts = [results.controllers[name].by_category.get(category) for name in names]
        cells = [speedup_cell(part.speedup, part.speedup_ci95) if part else _NOTHING for part in parts]
        lines.append((category, str(size), *cells))
    return ("category", "prompts", *names), lines


def _category_section(results: Results) -> list[str]:
    if _is_comparison(results):
        return _section("Ours/peer by category", *_category_lines(turned_over(results)), numbers=True)
    return _section("Speed-up by category", *_category_lines(results), numbers=True)


def _setting_lines(results: Results) -> list[Sequence[str]]:
    """Settings that have a section of their own are left out."""
    return [(key, _value(value)) for key, value in results.settings.items() if key != "peers"]


def _difference_lines(results: Results) -> tuple[Sequence[str], list[Sequence[str]]]:
    lines: dict[tuple[str, ...], Sequence[str]] = {}
    for row in results.rows:
        if row.identical is False:
            place = _NOTHING if row.first_difference is None else str(row.first_difference)
            gap = _NOTHING if row.top2_gap is None else f"{row.top2_gap:.3g}"
            # Repeats that differ at the same token are one line.
            lines.setdefault((row.controller, row.prompt_id, place), (row.controller, row.prompt_id, place, gap))
    shown = list(lines.values())[:_DIFFERENCES_SHOWN]
    if len(lines) > len(shown):
        shown.append((f"and {len(lines) - len(shown)} more in results.csv", "", "", ""))
    return ("controller", "prompt", "first differing token", "target's top-2 logit gap there"), shown


def _failure_lines(results: Results) -> list[Sequence[str]]:
    return [(each.controller, each.prompt_id, str(each.repeat), each.error) for each in results.failures]


def _section(title: str, headers: Sequence[str], lines: Sequence[Sequence[str]], numbers: bool = False) -> list[str]:
    return [f"## {title}", _table(headers, lines, numbers)] if lines else []


def _table(headers: Sequence[str], lines: Iterable[Sequence[str]], numbers: bool) -> str:
    rule = [":--", *["--:" if numbers else ":--"] * (len(headers) - 1)]
    rows = [[_escape(cell) for cell in headers], rule, *([_escape(cell) for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _escape(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def speedup_cell(ratio: float | None, interval: tuple[float, float] | None) -> str:
    """A speed-up with its interval, where there is one; cut, never rounded up."""
    if interval is None:
        return cut(ratio, 2)
    return f"{cut(ratio, 2)} [{cut(interval[0], 2)}, {cut(interval[1], 2)}]"

"""The study as people read it: Markdown, CSV and figures, beside the JSON that is the truth.

Numbers are cut off, not rounded, as everywhere; an interval's upper end too.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from specgym.agents.study.study_plots import FIGURES
from specgym.controllers.evaluation.results.plots import cut
from specgym.env.common.files import atomic_path, write_text

SCHEMA = "specgym study 1"
_NOTHING = "-"


def write_study(record: Mapping[str, Any], folder: Path) -> None:
    """Writes ``results.json``, then ``results.md``, CSV tables and figures made from it, each atomically.

    Raises:
        FileWriteError: a file could not be written.
    """
    write_text(folder / "results.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    write_text(folder / "results.md", markdown(record))
    for name, text in csv_tables(record).items():
        write_text(folder / name, text)
    for name, draw in FIGURES.items():
        figure = draw(record)
        if figure is None:  # nothing to show: what an earlier run drew would contradict the new numbers
            (folder / name).unlink(missing_ok=True)
            continue
        with atomic_path(folder / name) as temporary:
            figure.savefig(temporary, format="png", facecolor="white")


def markdown(record: Mapping[str, Any]) -> str:
    """The page: overall, every machine and temperature, kinds of task, learned against rules, ablations, transfer."""
    overall, chosen = record["overall"], record["chosen"]
    blocks = ["# Study of learned controllers"]
    blocks += [] if record["preset"] == "default" else ["**Quick preset: these numbers show that it works, no more.**"]
    blocks += [
        f"Started {record['started_at']}, revision {record['git_revision'] or 'not a git checkout'}.",
        f"```\n{record['command']}\n```",
        "Speed-ups over plain decoding, predicted from recorded texts of the test split and latency profiles, the "
        "prompt's reading left out. Several machines and temperatures: geometric mean. Square brackets: 95 % interval "
        "over prompts; round ones: over seeds. Learned: mean time over the seeds. Numbers are cut off, not rounded.",
        f"Of the learned policies `{chosen}` did best on the validation split. {_verdict(overall, chosen)}",
        "![The ladder](ladder.png)",
        *_section("All machines and temperatures", ("controller", "speed-up", "over seeds"), _overall_lines(overall)),
        *_section("Learned policies against rules", *_against_lines(record)),
        *_section("By machine and temperature", *_cell_lines(record)),
        "![By kind of task](kinds.png)",
        *_section("By kind of task", *_kind_lines(record)),
        "![What is taken away](ablations.png)",
        *_section("Without a part of the observation", *_compared_lines(record["groups"])),
        *_section("Forms of action and ways to learn", *_compared_lines(record["forms"])),
    ]
    if record["transfer"]:
        blocks += ["![Transfer](transfer.png)", *_section("On a machine never seen", *_transfer_lines(record))]
    blocks += [
        "![Learning](curve.png)",
        *_section("Speed of learning", *_training_lines(record)),
        *_section("Settings", ("setting", "value"), [(key, _value(each)) for key, each in record["settings"].items()]),
        *_section("Machine", ("what", "value"), [(key, _value(each)) for key, each in record["machine"].items()]),
        *_section("Versions", ("library", "version"), list(record["versions"].items())),
    ]
    return "\n\n".join(blocks) + "\n"


def csv_tables(record: Mapping[str, Any]) -> dict[str, str]:
    """The numbers as CSV, by the name of the file."""
    ladder = [
        (cell["profile"], cell["temperature"], name, *_numbers(each))
        for cell in record["cells"]
        for name, each in _rungs(cell).items()
    ]
    kinds = [
        (kind, found["prompts"], name, *_numbers(each))
        for kind, found in record["kinds"].items()
        for name, each in found["rungs"].items()
    ]
    ablations = [
        (what, name, each["mean"], *(each["interval"] or ("", "")), *_numbers(next(iter(each["against"].values()))))
        for what in ("groups", "forms")
        for name, each in record[what].items()
    ]
    transfer = [
        (each["profile"], each["never_seen"]["mean"], each["seen"]["mean"], *_numbers(each["against_seen"]))
        for each in record["transfer"]
    ]
    curves = [
        (name, *line)
        for name, curve in record["curves"].items()
        for line in zip(*(curve[key] for key in ("steps", "minutes", "mean", "least", "most")), strict=True)
    ]
    ends = ("ratio", "low", "high")
    return {
        "ladder.csv": _csv(("profile", "temperature", "controller", *ends), ladder),
        "kinds.csv": _csv(("kind", "prompts", "controller", *ends), kinds),
        "ablations.csv": _csv(("what", "name", "speedup", "seeds_low", "seeds_high", *ends), ablations),
        "transfer.csv": _csv(("profile", "never_seen", "seen", *ends), transfer),
        "curves.csv": _csv(("name", "steps", "minutes", "mean", "least", "most"), curves),
    }


def _rungs(told: Mapping[str, Any]) -> dict[str, Any]:
    """Every rung, the learned ones before the bounds."""
    rungs = dict(told["rungs"])
    bounds = {name: rungs.pop(name) for name in ("myopic", "clairvoyant") if name in rungs}
    return rungs | {name: each["over_texts"] for name, each in told["learned"].items()} | bounds


def _verdict(overall: Mapping[str, Any], chosen: str) -> str:
    """How the best policy stands to the rules, in a sentence."""
    said = [
        f"{_ratio(each)} times {rival}{'' if _decided(each) else ', which is not told apart'}"
        for rival, each in overall["learned"][chosen]["against"].items()
    ]
    return f"Its throughput is {'; '.join(said)}." if said else ""


def _decided(each: Mapping[str, Any]) -> bool:
    return each["interval"] is not None and not each["interval"][0] <= 1 <= each["interval"][1]


def _overall_lines(overall: Mapping[str, Any]) -> list[Sequence[str]]:
    learned = overall["learned"]
    return [
        (name, _ratio(each), _mean(learned[name]) if name in learned else _NOTHING)
        for name, each in _rungs(overall).items()
    ]


def _against_lines(record: Mapping[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    learned = record["overall"]["learned"]
    rivals = list(learned[record["chosen"]]["against"])
    lines: list[Sequence[str]] = [
        ("all", name, *(_ratio(each["against"][rival]) for rival in rivals)) for name, each in learned.items()
    ]
    lines += [
        (f"{cell['profile']}, {cell['temperature']:g}", name, *(_ratio(each["against"][rival]) for rival in rivals))
        for cell in record["cells"]
        for name, each in cell["learned"].items()
    ]
    return ("machine, temperature", "policy", *(f"over {rival}" for rival in rivals)), lines


def _cell_lines(record: Mapping[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    cells = [_rungs(cell) for cell in record["cells"]]
    headers = [f"{cell['profile']}, {cell['temperature']:g}" for cell in record["cells"]]
    return ("controller", *headers), [(name, *(_ratio(cell[name]) for cell in cells)) for name in cells[0]]


def _kind_lines(record: Mapping[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    kinds = record["kinds"]
    names = list(next(iter(kinds.values()))["rungs"])
    lines: list[Sequence[str]] = [
        (name, *(cut(found["rungs"][name]["ratio"], 2) for found in kinds.values())) for name in names
    ]
    return ("controller", *(f"{kind} ({found['prompts']})" for kind, found in kinds.items())), lines


def _compared_lines(found: Mapping[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    base = next(iter(next(iter(found.values()))["against"]), "")
    lines: list[Sequence[str]] = [(name, _mean(each), _ratio(each["against"][base])) for name, each in found.items()]
    return ("policy", "speed-up", f"over {base}"), lines


def _transfer_lines(record: Mapping[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    lines: list[Sequence[str]] = [
        (
            each["profile"],
            _mean(each["never_seen"]),
            _mean(each["seen"]),
            _ratio(each["against_seen"]),
            _ratio(each["against_goodput"]) if "against_goodput" in each else _NOTHING,
        )
        for each in record["transfer"]
    ]
    return ("machine", "never seen", "seen", "never seen over seen", "never seen over goodput"), lines


def _training_lines(record: Mapping[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    lines: list[Sequence[str]] = [
        (
            name,
            f"{each['steps_per_second']:,.0f}",
            f"{each['steps_to_within_2_percent']:,.0f}",
            f"{each['minutes_to_within_2_percent']:.2f}",
        )
        for name, each in record["training"].items()
    ]
    return ("policy", "rounds/s, updates included", "rounds to within 2 %", "minutes to within 2 %"), lines


def _ratio(each: Mapping[str, Any]) -> str:
    return _with_ends(each["ratio"], each["interval"], "[]")


def _mean(each: Mapping[str, Any]) -> str:
    return _with_ends(each["mean"], each["interval"], "()")


def _with_ends(value: float, interval: Sequence[float] | None, brackets: str) -> str:
    if interval is None:
        return cut(value, 3)
    return f"{cut(value, 3)} {brackets[0]}{cut(interval[0], 3)}, {cut(interval[1], 3)}{brackets[1]}"


def _numbers(each: Mapping[str, Any]) -> tuple[object, ...]:
    return (each["ratio"], *(each["interval"] or ("", "")))


def _section(title: str, headers: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = [":--", *["--:"] * (len(headers) - 1)]
    rows = [list(headers), rule, *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return [f"## {title}", "\n".join(f"| {' | '.join(row)} |" for row in rows)] if lines else []


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _csv(headers: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(headers)
    writer.writerows(lines)
    return stream.getvalue()

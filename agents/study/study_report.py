"""The study as people read it: Markdown, CSV and figures, all derived from the JSON.

Numbers are cut off, not rounded; an interval's upper end too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from specgym.agents.study.study_plots import FIGURES, Record, compared_rules
from specgym.controllers.evaluation.results.figures import save_figure
from specgym.controllers.evaluation.results.schema import CLAIRVOYANT, MYOPIC
from specgym.controllers.evaluation.results.tables import Table, cut, markdown_page, with_interval
from specgym.env.common.files import write_text

SCHEMA = "specgym study 1"
_ENDS = ("ratio", "low", "high")
_TRANSFER = {
    "never seen": "never_seen",
    "seen": "seen",
    "never seen over seen": "against_seen",
    "never seen over goodput": "against_goodput",
}
"""keys of the record by header"""
_SPEED = {
    "rounds/s, updates included": ("steps_per_second", ",.0f"),
    "rounds to within 2 %": ("steps_to_within_2_percent", ",.0f"),
    "minutes to within 2 %": ("minutes_to_within_2_percent", ".2f"),
}
"""keys of the record and formats by header"""


def write_study(record: Record, folder: Path) -> None:
    """Writes ``results.json``, then ``results.md``, CSV tables and figures derived from it, each atomically.

    Raises:
        FileWriteError: a file could not be written.
    """
    write_text(folder / "results.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    write_text(folder / "results.md", markdown(record))
    for name, table in csv_tables(record).items():
        write_text(folder / name, table.csv())
    for name, draw in FIGURES.items():
        if (figure := draw(record)) is not None:
            save_figure(figure, folder / name)
        else:  # a figure of an earlier run would contradict the new numbers
            (folder / name).unlink(missing_ok=True)


def markdown(record: Record) -> str:
    """Returns the page: overall, every machine and temperature, kinds of task, learned against rules, ablations."""
    overall, chosen, transfer = record["overall"], record["chosen"], record["transfer"]
    learned = overall["learned"]
    blocks: list[str | Table] = [
        "Speed-ups over plain decoding, predicted from recorded texts of the test split and latency profiles, the "
        "prompt's reading left out. Several machines and temperatures: geometric mean. Square brackets: 95 % interval "
        "over prompts; round ones: over seeds. Learned: mean time over the seeds. Record are cut off, not rounded.",
        f"Of the learned policies `{chosen}` did best on the validation split. {_verdict(learned[chosen]['against'])}",
        "![The ladder](ladder.png)",
        Table(
            ("controller", "speed-up", "over seeds"),
            [(name, _cell(rung), _cell(learned.get(name))) for name, rung in _rungs(overall).items()],
            "All machines and temperatures",
        ),
        _against_rules(record, {"all": overall} | {_label(cell): cell for cell in record["cells"]}),
        _by_cell(record),
        "![By kind of task](kinds.png)",
        _by_kind(record["kinds"]),
        "![What is taken away](ablations.png)",
        _ablation("Without a part of the observation", record["groups"]),
        _ablation("Forms of action and ways to learn", record["forms"]),
        "![Transfer](transfer.png)" if transfer else "",
        Table(
            ("machine", *_TRANSFER),
            [(row["profile"], *(_cell(row.get(key)) for key in _TRANSFER.values())) for row in transfer],
            "On a machine never seen",
        ),
        "![Learning](curve.png)",
        Table(
            ("policy", *_SPEED),
            [
                (name, *(format(speed[key], form) for key, form in _SPEED.values()))
                for name, speed in record["training"].items()
            ],
            "Speed of learning",
        ),
    ]
    warning = "" if record["preset"] == "default" else "Quick preset: these numbers show that it works, no more."
    return markdown_page("Study of learned controllers", record, blocks, warning)


def csv_tables(record: Record) -> dict[str, Table]:
    """Returns the numbers as tables, by the name of their CSV file."""
    ladder = [
        (cell["profile"], cell["temperature"], name, *_ends(rung))
        for cell in record["cells"]
        for name, rung in _rungs(cell).items()
    ]
    kinds = [
        (kind, numbers["prompts"], name, *_ends(rung))
        for kind, numbers in record["kinds"].items()
        for name, rung in numbers["rungs"].items()
    ]
    ablations = [
        (what, name, *_ends(policy, "mean"), *_ends(next(iter(policy["against"].values()))))
        for what in ("groups", "forms")
        for name, policy in record[what].items()
    ]
    transfer = [
        (machine["profile"], machine["never_seen"]["mean"], machine["seen"]["mean"], *_ends(machine["against_seen"]))
        for machine in record["transfer"]
    ]
    columns = ("steps", "minutes", "mean", "least", "most")
    curves = [
        (name, *line)
        for name, curve in record["curves"].items()
        for line in zip(*(curve[column] for column in columns), strict=True)
    ]
    return {
        "ladder.csv": Table(("profile", "temperature", "controller", *_ENDS), ladder),
        "kinds.csv": Table(("kind", "prompts", "controller", *_ENDS), kinds),
        "ablations.csv": Table(("what", "name", "speedup", "seeds_low", "seeds_high", *_ENDS), ablations),
        "transfer.csv": Table(("profile", "never_seen", "seen", *_ENDS), transfer),
        "curves.csv": Table(("name", *columns), curves),
    }


def summary(record: Record) -> Table:
    """Returns the learned policies' speed-ups, and their throughput over the rules', over all cells."""
    table, learned = _against_rules(record, {"all": record["overall"]}), record["overall"]["learned"]
    rows = [(name, _cell(learned[name]["over_texts"]), *ratios) for _, name, *ratios in table.rows]
    return Table(("policy", "speed-up", *table.headers[2:]), rows, "Learned policies on the test split")


def _against_rules(record: Record, parts: Record) -> Table:
    """The learned policies' throughput over the rules', for parts of the record by their label."""
    rules = compared_rules(record)
    rows = [
        (label, name, *(_cell(policy["against"][rule]) for rule in rules))
        for label, part in parts.items()
        for name, policy in part["learned"].items()
    ]
    headers = ("machine, temperature", "policy", *(f"over {rule}" for rule in rules))
    return Table(headers, rows, "Learned policies against rules")


def _rungs(part: Record) -> dict[str, Record]:
    """All rungs, the learned ones before the bounds."""
    rungs = dict(part["rungs"])
    bounds = {name: rungs.pop(name) for name in (MYOPIC, CLAIRVOYANT) if name in rungs}
    return rungs | {name: policy["over_texts"] for name, policy in part["learned"].items()} | bounds


def _verdict(against: Record) -> str:
    """How the best policy compares with the rules, in a sentence."""
    parts = []
    for rule, ratio in against.items():
        decided = ratio["interval"] is not None and not ratio["interval"][0] <= 1 <= ratio["interval"][1]
        parts.append(f"{_cell(ratio)} times {rule}{'' if decided else ' (undecided)'}")
    return f"Its throughput is {'; '.join(parts)}." if parts else ""


def _by_cell(record: Record) -> Table:
    cells = [_rungs(cell) for cell in record["cells"]]
    rows = [(name, *(_cell(cell[name]) for cell in cells)) for name in cells[0]]
    return Table(("controller", *map(_label, record["cells"])), rows, "By machine and temperature")


def _by_kind(kinds: Record) -> Table:
    names = next(iter(kinds.values()))["rungs"]
    rows = [(name, *(cut(numbers["rungs"][name]["ratio"], 2) for numbers in kinds.values())) for name in names]
    headers = ("controller", *(f"{kind} ({numbers['prompts']})" for kind, numbers in kinds.items()))
    return Table(headers, rows, "By kind of task")


def _ablation(title: str, policies: Record) -> Table:
    rows = [(name, _cell(policy), *map(_cell, policy["against"].values())) for name, policy in policies.items()]
    base = next(iter(next(iter(policies.values()))["against"]), "")
    return Table(("policy", "speed-up", f"over {base}"), rows, title)


def _label(cell: Record) -> str:
    return f"{cell['profile']}, {cell['temperature']:g}"


def _cell(numbers: Record | None) -> str | None:
    """A ratio with its interval over prompts, or a mean with its interval over seeds."""
    if numbers is None:
        return None
    key, brackets = ("ratio", "[]") if "ratio" in numbers else ("mean", "()")
    return with_interval(numbers[key], numbers["interval"], 3, brackets)


def _ends(numbers: Record, value: str = "ratio") -> Sequence[float | None]:
    return (numbers[value], *(numbers["interval"] or (None, None)))

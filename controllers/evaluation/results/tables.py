"""Tables, stated once and shown on a terminal, in Markdown and as CSV; the Markdown pages they stand in; numbers.

Rounding is never in our favour: `cut` cuts numbers off.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from typing import Any

from rich import box
from rich import table as rich_table
from rich.text import Text

INCOMPLETE = "INCOMPLETE: the run was stopped before its end; these numbers are of the part that was measured."
_NOTHING = "-"
_WIDEST = 14  # a longer word may be broken on a narrow terminal; no number is as long


@dataclass(frozen=True)
class Table:
    """A table; ``console.print(Table(...))`` works. A cell of None is a dash, and an empty field in CSV."""

    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str = ""
    caption: str = ""
    """text below the table on a terminal"""
    warning: str = ""
    """a sentence before the caption that stands out"""
    numbers: bool = True
    """whether all columns but the first hold numbers; Markdown aligns them to the right"""

    def markdown(self) -> str:
        """Returns the table in Markdown, without its title and caption."""
        rule = [":--", *["--:" if self.numbers else ":--"] * (len(self.headers) - 1)]
        lines = [_markdown_cells(self.headers), rule, *map(_markdown_cells, self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def csv(self) -> str:
        """Returns the table as CSV, headers first."""
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([self.headers, *self.rows])
        return stream.getvalue()

    def __rich__(self) -> rich_table.Table:
        """Returns the table for a terminal: where it is narrow, cells fold between words and no number is cropped."""
        caption = Text.assemble((f"{self.warning}\n" if self.warning else "", "bold red"), (self.caption, "dim"))
        shown = rich_table.Table(
            title=Text(self.title) if self.title else None,
            caption=caption if caption.plain else None,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=0,
            show_edge=False,
        )
        lines = [[_shown(cell) for cell in row] for row in self.rows]
        for index, header in enumerate(self.headers):
            words = " ".join([header, *(line[index] for line in lines)]).split()
            least = min(max(map(len, words), default=0), _WIDEST)
            justify = "left" if index == 0 else "right"
            shown.add_column(Text(header), justify=justify, overflow="fold", min_width=least)  # type: ignore[arg-type]
        for line in lines:
            shown.add_row(*map(Text, line))  # never read as markup
        return shown


def cut(value: float | None, digits: int, rounding: str = ROUND_FLOOR) -> str:
    """Returns `value` with `digits` decimals, cut off and not rounded, so that no number flatters; a dash for None."""
    if value is None:
        return _NOTHING
    # By way of the shortest decimal: 1.15 is meant as 1.15 and shall not become 1.14.
    return str(Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-digits), rounding))


def with_interval(value: float | None, interval: Sequence[float] | None, digits: int = 2, brackets: str = "[]") -> str:
    """Returns a number and its interval, as in ``1.52 [1.40, 1.63]``, all cut off; without an interval the number."""
    ends = "" if interval is None else f" {brackets[0]}{', '.join(cut(end, digits) for end in interval)}{brackets[1]}"
    return cut(value, digits) + ends


def markdown_page(title: str, facts: Mapping[str, Any], blocks: Iterable[str | Table], warning: str = "") -> str:
    """Returns a page of results: where they come from, the blocks, then settings, machine and versions.

    Args:
        title: the page's heading.
        facts: what `provenance.run_facts` returns, and ``settings``.
        blocks: Markdown, or tables; a table's title is its section's heading. Empty blocks are left out.
        warning: a sentence to print first, in bold.
    """
    tables = {"settings": ("setting", "value"), "machine": ("what", "value"), "versions": ("library", "version")}
    head = [
        f"# {title}",
        f"**{warning}**" if warning else "",
        f"Started {facts['started_at']}, revision {facts['git_revision'] or 'not a git checkout'}.",
        f"```\n{facts['command']}\n```",
    ]
    tail = [
        Table(headers, [(key, _value(value)) for key, value in facts[name].items()], name.capitalize(), numbers=False)
        for name, headers in tables.items()
        if name in facts
    ]
    texts = [
        block if isinstance(block, str) else f"## {block.title}\n\n{block.markdown()}" if block.rows else ""
        for block in [*head, *blocks, *tail]
    ]
    return "\n\n".join(filter(None, texts)) + "\n"


def _shown(cell: object) -> str:
    return _NOTHING if cell is None else str(cell)


def _markdown_cells(row: Sequence[object]) -> list[str]:
    return [" ".join(_shown(cell).split()).replace("|", "\\|") for cell in row]


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

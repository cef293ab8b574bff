"""Fills pages with results: the text between two marks is rendered from a results file, never written by hand."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from specgym.controllers.evaluation.results.report import agreement, load_results, planning, table
from specgym.controllers.evaluation.results.tables import Table, cut
from specgym.controllers.registry import BASELINE
from specgym.env.common.errors import ParameterError, UnknownNameError
from specgym.env.common.files import write_text

_SETTINGS = (
    "{prompt_count} {prompts} prompts, at most {max_new_tokens} tokens each, temperature {temperature:g}, {dtype}, "
    "target {target}, draft {draft_kind}; {cpu}, {threads} threads, {device}, {date}."
)
_BLOCK = re.compile(
    r"(?P<mark><!-- results: (?P<path>[^\n#|]+?)(#(?P<title>[^\n]+?))?( \| (?P<columns>[^\n]+?))? -->\n)"
    r".*?(?P<end><!-- end of results -->)",
    re.DOTALL,
)


def render(page: Path) -> str:
    """Returns the page's text with every results block rendered anew.

    A block is ``<!-- results: PATH -->`` … ``<!-- end of results -->``; the path is relative to the page's folder. PATH
    names the ``results.json`` of a benchmark or an evaluation. ``PATH#Title`` names a section of a Markdown page that a
    command wrote beside its results; the section's pictures are left out. ``PATH | COLUMN, COLUMN`` shows these columns
    of the run's table alone.

    Raises:
        ParameterError: the page has no block, or a results file is missing, does not fit the schema or has no such
            section.
    """
    text = _read(page)
    if not _BLOCK.search(text):
        raise ParameterError(
            f"{page} has no block <!-- results: PATH --> … <!-- end of results -->; nothing to update."
        )

    def render_block(block: re.Match[str]) -> str:
        path = page.parent / block["path"]
        content = _summary(path, block["columns"]) if block["title"] is None else _section(path, block["title"])
        return f"{block['mark']}\n{content}\n\n{block['end']}"

    return _BLOCK.sub(render_block, text)


def update(page: Path) -> None:
    """Writes the rendered page. Raises as `render` does, and `FileWriteError`."""
    write_text(page, render(page))


def _read(page: Path) -> str:
    try:
        return page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"Could not read {page} ({error}). Expected a page in UTF-8.") from error


def _section(path: Path, title: str) -> str:
    """Returns the text below a heading, up to the next heading."""
    parts = re.split(r"^#+ (.+)$", _read(path), flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    if title not in sections:
        raise ParameterError(f"{path} has no section {title!r}; it has {', '.join(sections) or 'none'}.")
    return re.sub(r"^!\[.*\n?", "", sections[title], flags=re.MULTILINE).strip()


def _summary(path: Path, columns: str | None) -> str:
    """Returns a line about the run, its main table, or these `columns` of it, and its findings."""
    results = load_results(path)
    try:
        facts = _SETTINGS.format_map({**results.settings, **vars(results.machine), "date": results.started_at[:10]})
    except KeyError as error:
        raise ParameterError(f"{path} lacks the setting {error}, which a page shows. Run the command again.") from error
    plain = ""
    if (peer := results.controllers.get("transformers")) and peer.speedup and results.baseline == BASELINE:
        plain = f"transformers' `generate` runs at {cut(peer.speedup, 2)} times our plain decoding's speed."
    blocks = [
        "" if results.complete else "**The run was stopped before its end; this is the part that was measured.**",
        facts,
        _chosen(table(results), columns).markdown(),
        plain,
        planning(results),
        agreement(results),
    ]
    return "\n\n".join(filter(None, blocks))


def _chosen(whole: Table, columns: str | None) -> Table:
    """Returns a table with only the named columns, if any. Raises `UnknownNameError` for one that the table lacks."""
    names = whole.headers if columns is None else columns.split(", ")
    for name in names:
        if name not in whole.headers:
            raise UnknownNameError("column", name, whole.headers)
    rows = [[row[whole.headers.index(name)] for name in names] for row in whole.rows]
    return dataclasses.replace(whole, headers=names, rows=rows)

"""Results shown in pages: the part between two marks is written from a results file, never by hand."""

from __future__ import annotations

import re
from pathlib import Path

from controllers.evaluation.plots import cut
from controllers.evaluation.report import load_results, summary
from controllers.evaluation.schema import Results
from env.errors import ParameterError
from env.files import write_text

__all__ = ["render", "update"]

_BLOCK = re.compile(r"(<!-- results: (?P<path>\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def render(page: Path) -> str:
    """The page's text with every results block made anew from the file that its mark names.

    A block is ``<!-- results: PATH -->`` … ``<!-- end of results -->``, the path counted from the page's folder.

    Raises:
        ParameterError: the page has no block, or a results file is missing or does not fit the schema.
    """
    text = page.read_text(encoding="utf-8")
    if not _BLOCK.search(text):
        raise ParameterError(
            f"{page} has no block <!-- results: PATH --> … <!-- end of results -->; nothing to update."
        )
    return _BLOCK.sub(lambda block: block[1] + _show(load_results(page.parent / block["path"])) + block[3], text)


def update(page: Path) -> None:
    """Writes what `render` gives. Raises as it does, and `FileWriteError`."""
    write_text(page, render(page))


def _show(results: Results) -> str:
    settings, machine = results.settings, results.machine
    lines = [
        f"{settings['prompt_count']} {settings['prompts']} prompts, at most {settings['max_new_tokens']} tokens each, "
        f"temperature {settings['temperature']:g}, {settings['dtype']}, target {settings['target']}, draft "
        f"{settings['draft_kind']}; {machine.cpu}, "
        f"{machine.threads} threads, {machine.device}, {results.started_at[:10]}.",
        summary(results),
    ]
    plain = results.controllers.get("transformers")
    if plain is not None and plain.speedup:
        lines.append(f"transformers' `generate` runs at {cut(plain.speedup, 2)} times our plain decoding's speed.")
    return "\n" + "\n\n".join(lines) + "\n\n"

"""Results shown in pages: the part between two marks is written from a results file, never by hand."""

from __future__ import annotations

import re
from pathlib import Path

from specgym.controllers.evaluation.live.paired_runs import BASELINE
from specgym.controllers.evaluation.results.plots import cut
from specgym.controllers.evaluation.results.report import agreement, load_results, planning, summary
from specgym.env.common.errors import ParameterError
from specgym.env.common.files import write_text

_SETTINGS = ("prompt_count", "prompts", "max_new_tokens", "temperature", "dtype", "target", "draft_kind")
_BLOCK = re.compile(
    r"(<!-- results: (?P<path>[^\n#]+?)(#(?P<title>[^\n]+?))? -->\n).*?(<!-- end of results -->)", re.DOTALL
)


def render(page: Path) -> str:
    """The page's text with every results block made anew from the file that its mark names.

    A block is ``<!-- results: PATH -->`` … ``<!-- end of results -->``, the path counted from the page's folder. It
    is that of a ``results.json`` of a benchmark or an evaluation; or it is ``PATH#Title``, a section of the page that a
    command wrote beside its results, which is shown without its pictures.

    Raises:
        ParameterError: the page has no block, or a results file is missing, does not fit the schema or has no such
            section.
    """
    text = _read(page)
    if not _BLOCK.search(text):
        raise ParameterError(
            f"{page} has no block <!-- results: PATH --> … <!-- end of results -->; nothing to update."
        )
    return _BLOCK.sub(lambda block: block[1] + _block(page.parent / block["path"], block["title"]) + block[5], text)


def update(page: Path) -> None:
    """Writes what `render` gives. Raises as it does, and `FileWriteError`."""
    write_text(page, render(page))


def _read(page: Path) -> str:
    try:
        return page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"Could not read {page} ({error}). Expected a page in UTF-8.") from error


def _block(path: Path, title: str | None) -> str:
    return f"\n{_show(path) if title is None else _section(path, title)}\n\n"


def _section(path: Path, title: str) -> str:
    """What stands under a heading, up to the next one."""
    parts = re.split(r"^#+ (.+)$", _read(path), flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    if title not in sections:
        raise ParameterError(f"{path} has no section {title!r}; it has {', '.join(sections) or 'none'}.")
    return re.sub(r"^!\[.*\n?", "", sections[title], flags=re.MULTILINE).strip()


def _show(path: Path) -> str:
    results = load_results(path)
    settings, machine = results.settings, results.machine
    if missing := [name for name in _SETTINGS if name not in settings]:
        raise ParameterError(
            f"{path} lacks the settings {', '.join(missing)}, which a page shows. Run the command again."
        )
    lines = [] if results.complete else ["**The run was stopped before its end; this is the part that was measured.**"]
    lines += [
        f"{settings['prompt_count']} {settings['prompts']} prompts, at most {settings['max_new_tokens']} tokens each, "
        f"temperature {settings['temperature']:g}, {settings['dtype']}, target {settings['target']}, draft "
        f"{settings['draft_kind']}; {machine.cpu}, "
        f"{machine.threads} threads, {machine.device}, {results.started_at[:10]}.",
        summary(results),
    ]
    plain = results.controllers.get("transformers")
    if plain is not None and plain.speedup and results.baseline == BASELINE:
        lines.append(f"transformers' `generate` runs at {cut(plain.speedup, 2)} times our plain decoding's speed.")
    lines += [sentence for sentence in (planning(results), agreement(results)) if sentence]
    return "\n\n".join(lines)

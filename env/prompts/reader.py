"""Reads prompts by name or from a JSONL file, and picks a subset that is balanced over their categories."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specgym.env.common.errors import LimitError, PromptError, UnknownNameError
from specgym.env.prompts.human_eval import load_tasks

BUILTIN_SOURCES = ("builtin", "human-eval")
"""The sources that have a name; every other source is the path of a file."""

_FORM = '{"question_id": 1, "category": "code", "turns": ["..."]}'


@dataclass(frozen=True)
class Prompt:
    """What a user says to the target, in one or several turns."""

    identifier: str
    """unique within its source, such as `builtin/17`, `HumanEval/3` or `<file stem>/<question_id>`"""
    category: str
    """kind of task, such as `translation`; balanced subsets and reports are grouped by it"""
    turns: tuple[str, ...]
    """the user's messages, in order; the target's answers go between them"""


def load_prompts(source: str, limit: int | None = None, categories: Sequence[str] | None = None) -> list[Prompt]:
    """Loads the prompts of a source.

    Args:
        source: `builtin` (SpecGym's own), `human-eval` (fetched once if need be), or the path of a JSONL file in the
            form of Spec-Bench and MT-bench. A file that is called like a source is given as `./builtin`.
        limit: the most prompts to return. They are taken from the categories in turn and returned in that order, so
            that every beginning of the list is balanced. Without it, all prompts come in the order of the source.
        categories: the kinds of task that are wanted; all if None.

    Raises:
        LimitError: `limit` is below 1.
        PromptError: the source is unknown, cannot be read or fetched, or holds a line that is no prompt.
        UnknownNameError: it has no such category.
    """
    if limit is not None and limit < 1:
        raise LimitError(f"Expected a limit of at least 1 prompt, got {limit}. Leave it out to get all of them.")
    prompts = _load_all(source)
    if categories is not None:
        known = {prompt.category for prompt in prompts}
        for category in categories:
            if category not in known:
                raise UnknownNameError(f"category of {source}", category, known)
        prompts = [prompt for prompt in prompts if prompt.category in categories]
    return prompts if limit is None else _round_robin(prompts)[:limit]


def parse_prompts(text: str, name: str, stem: str) -> list[Prompt]:
    """Parses JSONL `text`; `name` stands for it in messages, and identifiers begin with `stem`.

    Raises:
        PromptError: a line is no prompt, two have the same `question_id`, or there is none at all.
    """
    prompts: dict[str, Prompt] = {}
    for number, line in _filled_lines(text):
        where = f"{name}:{number}"
        record = _record(line, where)
        identifier = f"{stem}/{_question_id(record, where)}"
        if identifier in prompts:
            raise PromptError(
                f"{where}: expected a question_id of its own, but {record['question_id']!r} was used on an earlier "
                "line. Give each prompt a different one."
            )
        prompts[identifier] = Prompt(identifier, _category(record, where), _turns(record, where))
    if not prompts:
        raise PromptError(f"{name}: expected at least one prompt, but the file is empty. Add lines such as {_FORM}.")
    return list(prompts.values())


def _load_all(source: str) -> list[Prompt]:
    if source == "builtin":
        return _read_file(Path(__file__).with_name("builtin.jsonl"))
    if source == "human-eval":
        return [Prompt(identifier, "code", (turn,)) for identifier, turn in load_tasks().items()]
    path = Path(source)
    # "" would be the current folder; a bare word is more likely a misspelt name than a file.
    if not source or not (path.suffix or path.name != source or path.exists()):
        raise _unknown_source(source)
    return _read_file(path)


def _unknown_source(source: str) -> PromptError:
    close = difflib.get_close_matches(source, BUILTIN_SOURCES, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]}?" if close else ""
    return PromptError(
        f"Unknown prompt source {source!r}.{hint} Expected one of {', '.join(BUILTIN_SOURCES)}, or the path of a file "
        "that exists, such as ./prompts.jsonl."
    )


def _read_file(path: Path) -> list[Prompt]:
    try:
        text = path.read_bytes().decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except OSError as error:
        raise PromptError(
            f"{path}: expected a prompt file that can be read, got: {error.strerror or error}. Check the path and its "
            f"permissions, or use one of {', '.join(BUILTIN_SOURCES)}."
        ) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise PromptError(
            f"{path}:{line}: expected UTF-8, got the byte 0x{error.object[error.start]:02x}. Save the file as UTF-8."
        ) from error
    return parse_prompts(text, str(path), path.stem)


def _filled_lines(text: str) -> Iterator[tuple[int, str]]:
    # Not splitlines(): a JSON string may hold line separators such as U+2028 as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where}: expected one JSON object, got no JSON ({error}). Write {_FORM}.") from error
    if not isinstance(record, dict):
        raise PromptError(f"{where}: expected a JSON object, got {_shown(record)}. Write {_FORM}.")
    return record


def _question_id(record: dict[str, Any], where: str) -> str:
    value = record.get("question_id")
    if not _is_text(value) and type(value) is not int:  # isinstance() would let true and false pass
        raise PromptError(
            f"{where}: expected a question_id that is a number or a name, got {_shown(value)}. Write {_FORM}."
        )
    return str(value)


def _category(record: dict[str, Any], where: str) -> str:
    value = record.get("category", "uncategorised")
    if not _is_text(value):
        raise PromptError(
            f"{where}: expected a category that is a name, got {_shown(value)}. Correct it or leave it out."
        )
    return str(value)


def _turns(record: dict[str, Any], where: str) -> tuple[str, ...]:
    turns = record.get("turns")
    if not isinstance(turns, list) or not turns or not all(map(_is_text, turns)):
        raise PromptError(
            f"{where}: expected turns to be a list of texts that are not empty, got {_shown(turns)}. Write {_FORM}."
        )
    return tuple(turns)


def _is_text(value: object) -> bool:
    # JSON can spell half a surrogate pair, which no tokeniser takes.
    return (
        isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= letter <= "\udfff" for letter in value)
    )


def _shown(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _round_robin(prompts: list[Prompt]) -> list[Prompt]:
    """Takes one prompt of each category in turn; categories in order of appearance, exhausted ones left out."""
    taken: dict[str, int] = {}
    rounds: list[list[Prompt]] = []
    for prompt in prompts:
        place = taken.get(prompt.category, 0)
        taken[prompt.category] = place + 1
        if place == len(rounds):
            rounds.append([])
        rounds[place].append(prompt)
    first_seen = list(taken)
    return [prompt for row in rounds for prompt in sorted(row, key=lambda each: first_seen.index(each.category))]

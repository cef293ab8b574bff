"""Beginnings of user turns by kind of task, from ``prompt_templates.json``, and texts that tasks are about.

The target writes its own training text, user turns included. Without guidance it mostly asks for stories and
explanations. An opening that it must continue spreads the text over the kinds of task that users bring. A task about a
text either leaves writing that text to the target, or puts an instruction around a given one.

A draft must learn to copy for answers that copy from their prompt. The given texts come with every Python installation:
paragraphs of the language's documentation and functions of the standard library. Neither they nor the templates are in
the benchmark's prompts, so agreement on those stays a held-out figure.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType

import numpy as np

_TEMPLATES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))

SHARES: dict[str, float] = _TEMPLATES["shares"]
"""share of each kind of task among the conversations; sums to 1"""
KINDS = tuple(SHARES)
OPENINGS: dict[str, tuple[str, ...]] = {kind: tuple(texts) for kind, texts in _TEMPLATES["openings"].items()}
"""openings that the target continues; after an empty one it writes the whole user turn"""
INSTRUCTIONS: dict[str, tuple[str, ...]] = {kind: tuple(texts) for kind, texts in _TEMPLATES["instructions"].items()}
"""instructions around a ``{text}``; the target completes those that end neither in a full stop nor in the text"""

_PASSAGE = (500, 1300)  # characters: 120 to 330 tokens
_FUNCTION = (250, 1100)


@dataclass(frozen=True)
class Turn:
    """The given part of a user's turn."""

    kind: str
    """kind of task, one of `KINDS`"""
    text: str
    """beginning of the turn"""
    subject: str
    """the text that the task is about, if one is given; held-out prompts are chosen by it"""
    open: bool
    """whether the target continues the turn"""
    long: bool
    """whether the target may write a text within it"""


def draw_turn(random: np.random.Generator, given_share: float) -> Turn:
    """Draws a turn of a random kind. If the kind is about a text, one is given with probability `given_share`."""
    kind = KINDS[random.choice(len(KINDS), p=list(SHARES.values()))]
    if kind not in INSTRUCTIONS or random.random() >= given_share:
        return Turn(kind, _any(random, OPENINGS[kind]), "", open=True, long=kind in _SOURCES)
    template, subject = _any(random, INSTRUCTIONS[kind]), _any(random, _SOURCES[kind]())
    complete = template.endswith((".", "{text}", "```"))
    return Turn(kind, template.replace("{text}", subject), subject, open=not complete, long=False)


def _any(random: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[random.integers(len(choices))]


@cache
def passages() -> tuple[str, ...]:
    """Returns paragraphs of the language's documentation, joined up to a readable length."""
    texts: list[str] = []
    for topic in sorted(topics):
        joined = ""
        for paragraph in topics[topic].strip().split("\n\n")[1:]:  # without the heading
            if joined and len(joined) + len(paragraph) > _PASSAGE[1]:
                texts.append(joined)
                joined = ""
            joined = f"{joined}\n\n{paragraph}".strip("\n")
        texts.append(joined)
    return tuple(text for text in texts if _PASSAGE[0] <= len(text) <= _PASSAGE[1])


@cache
def functions() -> tuple[str, ...]:
    """Returns the source of functions and methods of the standard library."""
    sources = itertools.chain.from_iterable(_sources(importlib.import_module(name)) for name in _TEMPLATES["modules"])
    return tuple(dict.fromkeys(sources))  # without duplicates, in order of appearance


def _sources(module: ModuleType) -> list[str]:
    """Returns the functions and methods of a module by name, indented as if they stood alone."""
    values = [value for _, value in sorted(vars(module).items())]
    members = [value for value in values if getattr(value, "__module__", "") == module.__name__]
    classes = [member for member in members if inspect.isclass(member)]
    callables = [*members, *(value for owner in classes for _, value in sorted(vars(owner).items()))]
    sources = []
    for function in filter(inspect.isfunction, callables):
        with contextlib.suppress(OSError):  # made by code, such as a dataclass's methods
            sources.append(inspect.cleandoc("\n" + inspect.getsource(function)))
    return [source for source in sources if _FUNCTION[0] <= len(source) <= _FUNCTION[1]]


_SOURCES = {"summarisation": passages, "reading": passages, "editing": functions}

"""How a user's turn begins, by kind of task.

The target writes its own training text, user turns included. Left alone it mostly asks for stories and
explanations; an opening that it must continue spreads the text over the kinds of task that users bring. Where a task
is about a given text, the target writes that text as well, or gets one from `texts` and an instruction around it.
None of the benchmark's prompts is here, so that agreement on them stays a held-out figure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from specgym.agents.distillation.data.texts import functions, passages

FREE = ""
"""No opening: the target writes the whole user turn."""

OPENINGS: dict[str, tuple[str, ...]] = {
    "conversation": (
        FREE,
        FREE,
        FREE,
        "What",
        "How",
        "Why",
        "Can you",
        "Could you explain",
        "I want to",
        "I need help with",
        "Tell me about",
        "Write a short",
        "Write an email",
        "Give me",
        "Describe",
        "List",
        "Who",
        "Which",
        "Is it",
        "What are the main",
        "What is the difference between",
        "Compare",
        "How do I",
        "Should I",
        "Suggest",
        "Create a plan",
        "Write a poem",
        "Write a story",
        "Imagine",
        "Explain how",
        "When did",
        "Where",
    ),
    "code": (
        "Write a Python function",
        "Write a function that",
        "Write a Python program",
        "Write a SQL query",
        "Write a JavaScript function",
        "Complete the following Python function:\n\ndef ",
        "Fix the bug in this code:\n\n",
        "Implement",
        "How do I write code",
        "Explain what this code does:\n\n",
        "Write a class in Python",
        "Sort",
        "Refactor",
        "Write a unit test for",
        "Complete this function.\n\nfrom typing import List\n\n\ndef ",
    ),
    "mathematics": (
        "Calculate",
        "What is the sum of",
        "Solve",
        "A train",
        "If",
        "There are",
        "Find the value of",
        "How many",
        "John has",
        "A store sells",
        "Simplify",
        "What is the area of",
        "The price of",
        "Maria bought",
    ),
    "translation": (
        "Translate the following sentence to French:",
        "Translate to Spanish:",
        "Translate to German:",
        "Translate this into English:",
        "How do you say",
        "Translate the following text from German to English:",
    ),
    "summarisation": (
        "Summarize the following text:\n\n",
        "Summarise this article in two sentences:\n\n",
        "Here is a passage:\n\n",
        "Give me the key points of this text:\n\n",
        "Rewrite the following paragraph",
        "Shorten this text:\n\n",
        "What is the main idea of this text? Summarise it in one paragraph.\n\n",
    ),
    "reading": (
        "Read the passage and answer the question.\n\nPassage:",
        "Context:",
        "Based on the text below, answer",
        "Answer the question using this article:\n\n",
        "Extract the names from this text:\n\n",
        "Read the following text carefully.\n\n",
    ),
    "editing": (
        "Fix the bug in this code:\n\n```python\n",
        "Add type hints to this function:\n\ndef ",
        "Rewrite this code so that it is easier to read:\n\n",
        "Correct the grammar of this text:\n\n",
        "Add comments to this code:\n\n```python\n",
    ),
}

GIVEN: dict[str, tuple[str, ...]] = {
    "summarisation": (
        "Summarize the following text:\n\n{text}",
        "Summarise this text in three sentences.\n\n{text}",
        "{text}\n\nGive me the key points of the text above.",
        "What is the following text about?\n\n{text}",
        "Rewrite this text in simpler words:\n\n{text}",
    ),
    "reading": (
        "Read the text and answer the question.\n\n{text}\n\nQuestion:",
        "Here is a text.\n\n{text}\n\nWhat does the text say about",
        "{text}\n\nAnswer with words from the text:",
        "Quote the sentence of this text that is the most important.\n\n{text}",
        "List the terms that this text explains, each with its explanation.\n\n{text}",
    ),
    "editing": (
        "Add type hints to this function and print the complete function:\n\n```python\n{text}\n```",
        "Rewrite this function with clearer names:\n\n```python\n{text}\n```",
        "Add a comment to every step of this function:\n\n```python\n{text}\n```",
        "Write a docstring for this function and print the result.\n\n```python\n{text}\n```",
        "```python\n{text}\n```\n\nRepeat this code with",
    ),
}
"""instructions around a text from `texts`; one that does not end in a full stop or the text is for the target to end"""

WEIGHTS: dict[str, float] = {
    "conversation": 0.35,
    "code": 0.17,
    "mathematics": 0.12,
    "translation": 0.07,
    "summarisation": 0.10,
    "reading": 0.11,
    "editing": 0.08,
}
"""share of each kind among the conversations; sums to 1"""

KINDS = tuple(WEIGHTS)

_SOURCES: dict[str, Callable[[], tuple[str, ...]]] = {
    "summarisation": passages,
    "reading": passages,
    "editing": functions,
}
_LONG_KINDS = frozenset(_SOURCES)


@dataclass(frozen=True)
class Turn:
    """A user's turn, as far as it is given."""

    kind: str
    """kind of task, one of `KINDS`"""
    text: str
    """what it begins with"""
    subject: str
    """the text that it is about, where one is given; what is held out is split by it"""
    open: bool
    """whether the target goes on with it"""
    long: bool
    """whether the target may write a text within it"""


def draw_turn(random: np.random.Generator, given_share: float) -> Turn:
    """A turn of a random kind; where a text may be given, it is with probability `given_share`."""
    kind = KINDS[random.choice(len(KINDS), p=list(WEIGHTS.values()))]
    if kind not in GIVEN or random.random() >= given_share:
        return Turn(kind, _any(random, OPENINGS[kind]), "", open=True, long=kind in _LONG_KINDS)
    template, subject = _any(random, GIVEN[kind]), _any(random, _SOURCES[kind]())
    complete = template.endswith((".", "{text}", "```"))
    return Turn(kind, template.replace("{text}", subject), subject, open=not complete, long=False)


def _any(random: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[random.integers(len(choices))]

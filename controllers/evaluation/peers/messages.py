"""What is said between the comparison and a worker: one JSON object a line, a question and then its answer.

Questions are `{"ask": "version"}`, `{"ask": "open", "peer": NAME, "setup": {...}}` and
`{"ask": "generate", "peer": NAME, "task": {...}}`. The answer is `{"answer": ...}`, or `{"error": TEXT}` with the
reason. Only the standard library is used here: a worker's Python may have nothing else of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol


@dataclass(frozen=True)
class Setup:
    """What is the same for every task of a run."""

    target: str
    """folder of the target"""
    dtype: str
    """precision: bfloat16, float16 or float32"""
    threads: int
    """threads of one operation"""
    room: int
    """longest text of the run, answers included [tokens]"""
    end_tokens: list[int]
    """ids that end a text"""
    temperature: float
    """0 decodes greedily"""
    top_k: int
    """0 for all tokens"""
    top_p: float
    """1 for all tokens"""
    assistant: str | None = None
    """folder of a small model to draft with"""
    gguf: str | None = None
    """the target's weights as a GGUF file"""


@dataclass(frozen=True)
class Task:
    """One text to be continued."""

    prompt: list[int]
    """the prompt's token ids"""
    max_new_tokens: int
    """most tokens to generate [tokens]"""
    seed: int
    """seed of the sampling noise"""


@dataclass(frozen=True)
class Answer:
    """What a peer made of a task."""

    tokens: list[int]
    """generated token ids, the one that ended the text included"""
    seconds: float
    """wall time, the prompt's reading included [s]"""
    rounds: int
    """target forwards, the prompt's included"""
    drafted: int = 0
    """draft tokens verified [tokens]"""
    accepted: int = 0
    """draft tokens committed [tokens]"""


class OpenPeer(Protocol):
    """A peer that is loaded."""

    def __call__(self, task: Task) -> Answer:
        """Continues a text."""


@dataclass
class Stopwatch:
    """The wall time of a block."""

    seconds: float = 0.0
    """set when the block is through [s]"""


@contextmanager
def timed() -> Iterator[Stopwatch]:
    """Measures the wall time of a block."""
    watch = Stopwatch()
    before = perf_counter()
    yield watch
    watch.seconds = perf_counter() - before


def cut_at_end(tokens: Iterable[int], end_tokens: Iterable[int], most: int) -> list[int]:
    """The tokens up to the first that ends the text, that one included, and no more than `most`."""
    ends = frozenset(end_tokens)
    kept: list[int] = []
    for token in tokens:
        if len(kept) == most:
            break
        kept.append(int(token))
        if token in ends:
            break
    return kept


Opener = Callable[[str, Setup], OpenPeer]
"""what every adapter has as `open_peer`: a peer by its name, loaded"""

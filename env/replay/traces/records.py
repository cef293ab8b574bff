"""The records of a trace: a header for all texts, and each text with the guesses along it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from specgym.env.replay.traces.recorded_trees import RecordedTrees
from specgym.env.tree.sampling import SamplingSettings

SPLITS = ("train", "validation", "test")
_FACTS = ("identifier", "category", "split", "settings", "prompt", "max_new_tokens")  # of a text, in JSON

Array = npt.NDArray[Any]
"""an array of any type"""


@dataclass(frozen=True)
class TraceHeader:
    """Facts that all texts of a trace share."""

    target: str
    """fingerprint of the target's weights"""
    draft: str
    """fingerprint of the draft's weights"""
    draft_kind: str
    """feature or causal"""
    names: tuple[str, str]
    """names of target and draft"""
    vocabulary: int
    """the target's number of tokens"""
    context_limits: tuple[int, int | None]
    """longest texts that the target and the draft read; None for no bound [tokens]"""
    end_tokens: tuple[int, ...]
    """tokens that end a text"""
    rule: dict[str, Any]
    """rule for the guesses that are recorded, see `SupersetRule`"""
    calibrator: dict[str, Any] | None
    """the draft's calibrator, see `Calibrator.record`"""
    dtype: str
    """precision of both models"""

    @property
    def columns(self) -> int:
        """Candidates kept of every node."""
        return int(self.rule["columns"])


@dataclass(frozen=True)
class TraceText:
    """A text and the guesses along it."""

    identifier: str
    """of the prompt, see `Prompt.identifier`"""
    category: str
    """kind of task"""
    split: str
    """one of `SPLITS`, the same for all texts of a prompt"""
    settings: SamplingSettings
    """how it was sampled"""
    prompt: int
    """length of the prompt [tokens]"""
    max_new_tokens: int
    """most tokens that were requested [tokens]"""
    tokens: tuple[int, ...]
    """prompt and answer [token ids]"""
    load: Callable[[], RecordedTrees] = field(compare=False, repr=False)
    """reads the guesses"""

    @cached_property
    def guesses(self) -> RecordedTrees:
        """The draft's guesses after each token of the answer but the last one; read at the first access."""
        return self.load()

    @property
    def key(self) -> tuple[Any, ...]:
        """Identifies the text within its trace."""
        return (self.identifier, *asdict(self.settings).values())


def columns_of(header: TraceHeader, facts: dict[str, Any]) -> dict[str, tuple[npt.DTypeLike, tuple[int, ...]]]:
    """Returns type and shape of the arrays of a text, in their order. Raises `KeyError`, `TypeError`."""
    tokens, prompt, rows = facts["tokens"], facts["prompt"], facts["rows"]
    candidate: npt.DTypeLike = "<u2" if header.vocabulary <= 2**16 else "<u4"
    return {
        "tokens": ("<u4", (tokens,)),
        "counts": ("<u2", (tokens - prompt,)),
        "parent": ("<u2", (rows,)),
        "rank": ("u1", (rows,)),
        "candidates": (candidate, (rows, header.columns)),
        "log_probs": ("<f2", (rows, header.columns)),
        "entropy": ("<f2", (rows,)),
    }


def pack(header: TraceHeader, text: TraceText) -> tuple[dict[str, Any], bytes]:
    """Returns a text as facts and arrays."""
    table, rows = text.guesses, len(text.guesses)
    counts = np.bincount(table.position - text.prompt, minlength=len(text.tokens) - text.prompt)
    first = np.repeat(np.cumsum(counts) - counts, counts)  # of the row's position
    values = {
        "tokens": np.array(text.tokens),
        "counts": counts,
        "parent": np.where(table.parent < 0, 0, table.parent - first + 1),
        "rank": table.rank,
        "candidates": table.tokens,
        "log_probs": table.log_probs,
        "entropy": table.entropy,
    }
    facts = {name: getattr(text, name) for name in _FACTS} | {"tokens": len(text.tokens), "rows": rows}
    facts["settings"] = asdict(text.settings)
    columns = columns_of(header, facts)
    return facts, b"".join(values[name].astype(kind).tobytes() for name, (kind, _) in columns.items())


def split(header: TraceHeader, facts: dict[str, Any], arrays: bytes | memoryview) -> dict[str, Array]:
    """Returns the arrays that `pack` joined, as views. Raises as `unpack` does."""
    columns: dict[str, Array] = {}
    offset = 0
    for name, (kind, shape) in columns_of(header, facts).items():
        size = int(np.prod(shape))
        columns[name] = np.frombuffer(arrays, kind, size, offset).reshape(shape)
        offset += size * np.dtype(kind).itemsize
    if offset != len(arrays):
        raise ValueError("its arrays are longer than it says")
    return columns


def unpack(header: TraceHeader, facts: dict[str, Any], arrays: memoryview) -> TraceText:
    """Returns the text that `pack` was given; its arrays are views.

    Raises:
        KeyError, TypeError, ValueError: facts and arrays do not match.
    """
    columns = split(header, facts, arrays)
    same = {name: facts[name] for name in _FACTS} | {"settings": SamplingSettings(**facts["settings"])}
    return TraceText(**same, tokens=tuple(columns["tokens"].tolist()), load=lambda: _table(columns, facts["prompt"]))


def _table(columns: dict[str, Array], prompt: int) -> RecordedTrees:
    counts = columns["counts"].astype(np.int64)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    parent = columns["parent"].astype(np.int64)
    return RecordedTrees(
        columns["candidates"].astype(np.int64),
        columns["log_probs"].astype(np.float64),
        columns["entropy"].astype(np.float64),
        np.where(parent == 0, -1, first + parent - 1),
        columns["rank"].astype(np.int64),
        np.repeat(np.arange(prompt, prompt + len(counts)), counts),
    )

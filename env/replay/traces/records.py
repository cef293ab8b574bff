"""The records of a trace: a header for all texts, and each text with the guesses along it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from specgym.env.common.errors import TraceError
from specgym.env.common.reading import check_types
from specgym.env.replay.traces.recorded_trees import RecordedTrees
from specgym.env.tree.sampling import SamplingSettings

SPLITS = ("train", "validation", "test")
_FACTS = ("identifier", "category", "split", "settings", "prompt", "max_new_tokens")  # of a text, in JSON
_NOISE = 1e-2  # an entropy of 0 may be this far below it, rounded [nats]

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


def read_header(facts: dict[str, Any]) -> TraceHeader:
    """Returns the header of a trace from JSON values. Raises `KeyError`, `TypeError`, `ValueError` for other values."""
    header = TraceHeader(**facts | {name: tuple(facts[name]) for name in ("names", "context_limits", "end_tokens")})
    texts = dict.fromkeys(("target", "draft", "draft_kind", "dtype"), str)
    check_types(facts, **texts, vocabulary=int, rule=dict, calibrator=(dict, type(None)))
    check_types(header.rule, columns=int, floor=float)
    _check_range("vocabulary", header.vocabulary, 1, 2**31)
    _check_range("columns", header.columns, 1, 256)  # a rank takes a byte
    for token in header.end_tokens:
        _check_range("an end token", token, 0, header.vocabulary)
    for limit in header.context_limits:
        _check_range("a context limit", 1 if limit is None else limit, 1, 2**31)
    if len(header.names) != 2 or len(header.context_limits) != 2 or not all(type(name) is str for name in header.names):
        raise ValueError("expected two names and two context limits")
    return header


def _check_range(name: str, value: object, least: int, end: int) -> None:
    if type(value) is not int or not least <= value < end:
        raise ValueError(f"expected {name} to be a whole number from {least} to {end - 1}, got {value!r:.40}")


def columns_of(header: TraceHeader, facts: dict[str, Any]) -> dict[str, tuple[npt.DTypeLike, tuple[int, ...]]]:
    """Returns type and shape of the arrays of a text, in their order. Raises `KeyError`, `ValueError`."""
    tokens, prompt, rows = facts["tokens"], facts["prompt"], facts["rows"]
    _check_range("rows", rows, 0, 2**31)
    _check_range("tokens", tokens, 1, 2**31)
    _check_range("prompt", prompt, 1, tokens + 1)
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


def unpack(header: TraceHeader, facts: dict[str, Any], arrays: memoryview, where: Path) -> TraceText:
    """Returns the text that `pack` was given; its arrays are views.

    Args:
        header: facts that all texts share.
        facts: facts of this text.
        arrays: its arrays.
        where: the file, for messages.

    Raises:
        KeyError, TypeError, ValueError: facts and arrays do not match. Guesses are checked when they are loaded, and
            raise `TraceError`.
    """
    columns = split(header, facts, arrays)
    check_types(facts["settings"], temperature=float, top_k=int, top_p=float, seed=int)
    check_types(facts, identifier=str, category=str, split=str)
    answer = len(columns["tokens"]) - facts["prompt"]
    _check_range("max_new_tokens", facts["max_new_tokens"], answer, 2**31)
    if facts["split"] not in SPLITS or columns["tokens"].max() >= header.vocabulary:
        raise ValueError(f"expected a split of {', '.join(SPLITS)}, and tokens below {header.vocabulary}")
    same = {name: facts[name] for name in _FACTS} | {"settings": SamplingSettings(**facts["settings"])}

    def load() -> RecordedTrees:
        try:
            return _table(header, columns, facts["prompt"])
        except ValueError as error:
            raise TraceError(f"{where} is corrupt: of text {facts['identifier']}, {error}. Record it again.") from error

    return TraceText(**same, tokens=tuple(columns["tokens"].tolist()), load=load)


def _table(header: TraceHeader, columns: dict[str, Array], prompt: int) -> RecordedTrees:
    """Returns the guesses. Raises `ValueError` for guesses that no recording has."""
    counts = columns["counts"].astype(np.int64)
    if counts.sum() != len(columns["rank"]):
        raise ValueError("its rows are not as many as its positions have")
    first = np.repeat(np.cumsum(counts) - counts, counts)
    parent = columns["parent"].astype(np.int64)
    if (parent > np.arange(len(parent)) - first).any() or (columns["rank"] >= header.columns).any():
        raise ValueError("a row is no candidate of an earlier row of its position")
    log_probs, entropy = columns["log_probs"].astype(np.float64), columns["entropy"].astype(np.float64)
    if columns["candidates"].max(initial=0) >= header.vocabulary:
        raise ValueError(f"a candidate is not below {header.vocabulary}")
    if not (log_probs <= 0).all() or not (np.isfinite(entropy) & (entropy >= -_NOISE)).all():
        raise ValueError("a log-probability is over 0 or no number, or an entropy is negative or infinite")
    return RecordedTrees(
        columns["candidates"].astype(np.int64),
        log_probs,
        entropy,
        np.where(parent == 0, -1, first + parent - 1),
        columns["rank"].astype(np.int64),
        np.repeat(np.arange(prompt, prompt + len(counts)), counts),
    )

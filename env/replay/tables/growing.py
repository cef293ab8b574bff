"""Outcomes of single rounds, grown one tree at a time in compiled code (`growing.cpp`), in a few microseconds each.

`tabulate` has the same outcomes in NumPy, which is faster for one choice at all roots and takes milliseconds for few.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_double, c_int32, c_int64, c_void_p
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from specgym.env.common.arrays import BoolArray, FloatArray, IntArray
from specgym.env.drafts.lookup import LATEST, LookupDraft
from specgym.env.kernels.build import find_library
from specgym.env.replay.tables.outcomes import FACTS, Rows
from specgym.env.replay.tables.trace_table import TraceTable
from specgym.env.tree.parameters import SOURCES, TreeParameters

_COUNTS = ("base_depth", "max_depth", "min_branch", "mid_branch", "max_branch", "frontier_width", "node_budget")
_LOOKUP = LookupDraft()


class _Recording(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("tokens", "log_probs", "calibrated", "confidence", "entropy", "child")),
        *((name, c_int64) for name in ("columns", "causal")),
        *((name, c_void_p) for name in ("text", "root_row", "begin", "end", "pairs", "pair_ends", "rates")),
    ]


class _Rule(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in (*_COUNTS, "source", "calibrated")),
        *((name, c_double) for name in ("high", "low", "log_high", "log_low", "early_stop", "deep_expand")),
        *((name, c_double) for name in ("min_reach", "min_confidence", "max_entropy", "min_level_reach")),
    ]


@cache
def _library() -> ctypes.CDLL | None:
    library = find_library(Path(__file__).with_suffix(".cpp"))
    if library is not None:
        library.specgym_grow.argtypes = [POINTER(_Recording), *[c_void_p] * 4, c_int64, c_int64, *[c_void_p] * 3]
        library.specgym_match.argtypes = [POINTER(_Recording), c_int64, c_void_p, c_void_p]
        library.specgym_grow.restype = library.specgym_match.restype = None
    return library


class TreeGrower:
    """Computes outcomes of rounds of a table of texts.

    Args:
        table: the texts.
    """

    def __init__(self, table: TraceTable) -> None:
        trees = table.trees
        log_probs = np.ascontiguousarray(trees.log_probs, np.float64)
        pairs, pair_ends = _pairs(table)
        self.arrays: dict[str, Any] = {
            "tokens": np.ascontiguousarray(trees.tokens, np.int64),
            "log_probs": log_probs,
            "calibrated": None if table.calibrator is None else _calibrated(table, log_probs),
            "confidence": np.exp(log_probs[:, 0]),
            "entropy": np.ascontiguousarray(trees.entropy, np.float64),
            "child": np.ascontiguousarray(trees.child, np.int64),
            "text": table.tokens,
            "root_row": trees.roots(np.arange(len(table.tokens))),
            "begin": table.start[table.owner],
            "end": table.end[table.owner],
            "pairs": pairs,
            "pair_ends": pair_ends,
        }
        addresses = {name: None if array is None else array.ctypes.data for name, array in self.arrays.items()}
        self._recording = _Recording(columns=trees.columns, causal=table.header.draft_kind == "causal", **addresses)
        self.matches, self.arrays["rates"] = self._look_up()
        self._recording.rates = self.arrays["rates"].ctypes.data

    @classmethod
    def of(cls, table: TraceTable) -> TreeGrower | None:
        """Returns the grower of a table; None without compiled code, or for texts that it is not made for."""
        tokens = table.tokens
        made_for = (_LOOKUP.shortest, _LOOKUP.longest) == (2, 16) and table.trees.columns <= LATEST
        made_for &= tokens.min() >= 0 and tokens.max() < 2**31
        return cls(table) if made_for and _library() is not None else None

    def match(self, root: int) -> tuple[int, float]:
        """Returns prompt lookup's longest match at a token and its probability, see `LookupDraft.at_root`."""
        length = int(self.matches[root])
        return length, float(self.arrays["rates"][root, length]) if length else 0.0

    def _look_up(self) -> tuple[IntArray, FloatArray]:
        """Returns the longest match at each token, and the probability of a match by its length there.

        `int64[tokens]` and `float64[tokens, longest + 1]`, see `LookupDraft`.
        """
        text, begin = self.arrays["text"], self.arrays["begin"]
        lengths, guesses = np.empty((2, len(text)), np.int64)
        library = _library()
        assert library is not None, "of() has asked"
        library.specgym_match(self._recording, len(text), lengths.ctypes.data, guesses.ctypes.data)
        counts = np.zeros((2, len(text), _LOOKUP.longest + 1))  # matches tried and right, of all texts together
        place = np.arange(1, len(text))
        counts[0, place, lengths[:-1]], counts[1, place, lengths[:-1]] = 1, guesses[:-1] == text[1:]
        counts = counts.cumsum(axis=1)
        tried, right = counts - counts[:, begin]
        prior = np.array([_LOOKUP.strength * (length / (length + 2)) for length in range(_LOOKUP.longest + 1)])
        return lengths, (right + prior) / (tried + _LOOKUP.strength)

    def rows(
        self, rules: Rules, choices: IntArray, roots: IntArray, most: IntArray, levels: int
    ) -> tuple[Rows, BoolArray]:
        """Returns outcomes of n rounds.

        Args:
            rules: tree parameters.
            choices: which of these, `int64[n]`.
            roots: positions in `table.tokens`, `int64[n]`.
            most: most draft tokens on a path, `int64[n]` [tokens].
            levels: draft levels below the root that a row holds, as many as any of the parameters allows.

        Returns:
            The rows, see `Outcomes.rows`, and which of them are known, `bool[n]`. Others are zero: the trace does not
            cover these rounds, or a last bit of NumPy's decides.
        """
        assert len(self.arrays["text"]) > roots.max() >= roots.min() >= 0, "roots lie in the texts"
        assert len(rules) > choices.max() >= choices.min() >= 0, "choices are rules"
        rows, known = np.zeros((len(choices), FACTS + levels), np.int32), np.zeros(len(choices), np.bool_)
        numbers = [np.ascontiguousarray(values, np.int64) for values in (choices, roots, most)]
        results = rows, np.zeros((len(choices), 2), np.int32), known
        inputs, outputs = ([array.ctypes.data for array in arrays] for arrays in (numbers, results))
        self._grow(rules, *inputs, len(choices), levels, *outputs)
        return rows, known

    def outcome(self, root: int, parameters: TreeParameters) -> tuple[list[int], list[int]] | None:
        """Returns the row of one round, and nodes that lookup alone proposed, drafted and accepted; None if unknown."""
        assert 0 <= root < len(self.arrays["text"]), "the root lies in the texts"
        levels = max(parameters.max_depth - 1, 0)
        # Small ctypes arrays take a fifth of the time of NumPy's.
        numbers = [c_int64(number) for number in (0, root, parameters.max_depth)]
        row, by_lookup, known = (c_int32 * (FACTS + levels))(), (c_int32 * 2)(), c_bool()
        self._grow(
            rule_of(parameters), *map(ctypes.byref, numbers), 1, levels, *map(ctypes.byref, (row, by_lookup, known))
        )
        return (row[:], by_lookup[:]) if known else None

    def _grow(self, rules: Any, *arguments: Any) -> None:
        library = _library()
        assert library is not None, "of() has asked"
        library.specgym_grow(self._recording, ctypes.byref(rules), *arguments)


Rules: TypeAlias = "ctypes.Array[_Rule]"
"""tree parameters as the compiled code reads them"""


def rules_of(choices: Sequence[TreeParameters]) -> Rules:
    """Returns tree parameters as the compiled code reads them."""
    return (_Rule * len(choices))(*map(rule_of, choices))


@lru_cache(2**14)
def rule_of(parameters: TreeParameters) -> _Rule:
    """Returns one of `rules_of`."""
    return _Rule(
        **{name: getattr(parameters, name) for name in _COUNTS},
        source=SOURCES.index(parameters.source),
        calibrated=parameters.calibrated,
        high=parameters.high_confidence,
        low=parameters.low_confidence,
        log_high=_least_log(parameters.high_confidence, strict=True),
        log_low=_least_log(parameters.low_confidence),
        early_stop=_least_log(parameters.early_stop),
        deep_expand=_least_log(parameters.deep_expand, strict=True),
        min_reach=_least_log(parameters.min_reach),
        min_confidence=_least_log(parameters.min_confidence),
        max_entropy=parameters.max_entropy,
        min_level_reach=parameters.min_level_reach,
    )


@lru_cache(4096)
def _least_log(bound: float, strict: bool = False) -> float:
    """Returns the lowest logarithm whose exponential by NumPy is at least `bound`, or over it where `strict`."""
    if bound <= 0:
        return -np.inf
    low, high = np.log(bound) - 1e-9, np.log(bound) + 1e-9
    while low < (middle := (low + high) / 2) < high:
        passes = np.exp(middle) > bound if strict else np.exp(middle) >= bound
        low, high = (low, middle) if passes else (middle, high)
    return float(high)


def _calibrated(table: TraceTable, log_probs: FloatArray) -> FloatArray:
    """Returns the calibrated log-probabilities of all candidates, `float64[rows, columns]`, each row in its order."""
    assert table.calibrator is not None, "the caller has asked"
    calibrated, parent = np.empty_like(log_probs), table.trees.parent
    level, depth = np.flatnonzero(parent < 0), 1
    while len(level):
        calibrated[level] = table.calibrator.calibrate(log_probs[level], depth, table.greedy)
        children = table.trees.child[level]
        level, depth = children[children >= 0], depth + 1
    return calibrated


def _pairs(table: TraceTable) -> tuple[Any, IntArray]:
    """Returns the pairs of adjacent tokens of each text in ascending order, and where each pair ends.

    Every text has as many entries as tokens, `uint64[tokens]` and `int64[tokens]`. Equal pairs stay in the text's
    order, and the entry of the first token, where no pair ends, comes last.
    """
    pairs = np.append(0, table.tokens[:-1]).astype(np.uint64) << np.uint64(32) | table.tokens.astype(np.uint64)
    pairs[table.start] = np.iinfo(np.uint64).max
    order = np.lexsort((pairs, table.owner))
    return pairs[order], order

"""Recorded texts side by side as arrays, and the part of a parameter grid that their trace answers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import astuple
from functools import cache, cached_property

import numpy as np

from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import ParameterError, TraceError
from specgym.env.drafts.calibrator import Calibrator
from specgym.env.gym.grid import ParameterGrid
from specgym.env.replay.traces.recorded_trees import RecordedTrees, WholeTextLookup
from specgym.env.replay.traces.records import TraceHeader, TraceText


class TraceTable:
    """Texts of a trace, all greedy or all sampled, one behind the other.

    Args:
        texts: the texts.
        header: of their trace.

    Attributes:
        tokens: of all texts, `int64[tokens]`.
        start: where each text starts, `int64[texts]`.
        begin: where each text's answer begins; its first token is the first root, `int64[texts]`.
        end: where each text ends, `int64[texts]`.
        limit: where each text would have to end, `int64[texts]`.
        owner: the text that each token belongs to, `int64[tokens]`.
        roots: every position that can be a round's root, `int64[roots]`.
        first: number of each text's first root, `int64[texts]`.
        contexts: position of each root in its own text, `int64[roots]`.
        unread: committed tokens that the draft has not read at the first root of each text, `int64[texts]`.
        looked_up: `looked_up(root, path)` are prompt lookup's candidates after tokens below a root, and their
            log-probabilities.

    Raises:
        ParameterError: greedy and sampled texts together.
        TraceError: no text.
    """

    def __init__(self, texts: Sequence[TraceText], header: TraceHeader) -> None:
        if not texts:
            raise TraceError("Expected one recorded text or more; got none. Record some with specgym record.")
        if len({text.settings.greedy for text in texts}) > 1:
            raise ParameterError("Expected texts that are all greedy or all sampled; got both. Take one temperature.")
        self.texts, self.header = texts, header
        self.greedy = texts[0].settings.greedy
        lengths = np.array([len(text.tokens) for text in texts])
        prompts = np.array([text.prompt for text in texts])
        most_new = np.array([text.max_new_tokens for text in texts])
        self.tokens: IntArray = np.concatenate([text.tokens for text in texts]).astype(np.int64)
        self.start: IntArray = np.cumsum(lengths) - lengths
        self.begin: IntArray = self.start + prompts
        self.end: IntArray = self.start + lengths
        self.limit: IntArray = self.start + np.minimum(prompts + most_new, header.context_limits[0])
        self.owner: IntArray = np.repeat(np.arange(len(texts)), lengths)
        self.roots: IntArray = np.concatenate(
            [np.arange(begin, end - 1) for begin, end in zip(self.begin, self.end, strict=True)]
        )
        self.lengths: IntArray = self.end - self.begin - 1  # roots of each text
        self.first: IntArray = np.cumsum(self.lengths) - self.lengths
        self.contexts: IntArray = self.roots - self.start[self.owner[self.roots]]
        # At its first level the draft reads the prompt and the first token; a feature draft has no row for the first.
        self.unread: IntArray = prompts + 1 - (header.draft_kind == "feature")
        self.trees = RecordedTrees.joined([text.guesses for text in texts], self.start.tolist())
        self.calibrator = None if header.calibrator is None else Calibrator.of(header.calibrator)
        self.looked_up = cache(self._looked_up)

    @cached_property
    def lookups(self) -> list[WholeTextLookup]:
        """Prompt lookup in each text."""
        return [WholeTextLookup(text.tokens) for text in self.texts]

    def _looked_up(self, root: int, path: tuple[int, ...]) -> list[tuple[int, float]]:
        text = int(self.owner[root])
        self.lookups[text].seek(root - int(self.start[text]) + 1)
        after = self.lookups[text].after(list(path), self.header.columns)
        return [(token, math.log(probability)) for token, probability in after]

    def deepest(self, roots: IntArray) -> IntArray:
        """Most draft tokens on a path at each root, see `DecodingSession`, `int64[roots]`."""
        deepest: IntArray = np.maximum(self.limit[self.owner[roots]] - roots - 2, 0)
        return deepest

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of all that outcomes depend on: texts, limits, guesses and calibrator."""
        trees, digest = self.trees, hashlib.sha256()
        digest.update(repr((astuple(self.header), self.greedy)).encode())
        guesses = (trees.tokens, trees.log_probs, trees.entropy, trees.parent, trees.rank, trees.position)
        for array in (self.tokens, self.begin, self.end, self.limit, *guesses):
            digest.update(repr((array.dtype.str, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def check_covered(grid: ParameterGrid, header: TraceHeader) -> None:
    """Refuses a grid that needs less reach or more depth than a trace by this rule holds.

    Raises:
        ParameterError: the trace does not hold it.
    """
    floor, deepest = header.rule["floor"], header.rule["max_depth"]
    if min(grid.early_stop) < floor or grid.deepest > deepest:
        raise ParameterError(
            f"The trace holds trees of reach {floor:g} and more, down to depth {deepest}; the grid has an early_stop "
            f"of {min(grid.early_stop):g} and a depth of {grid.deepest}. Leave such values out (grid.early_stop, "
            "grid.base_depth, grid.base.max_depth), or record more with specgym record."
        )

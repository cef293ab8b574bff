"""Prompt lookup: guess that the text goes on as it did the last time.

After prompt lookup decoding (Saxena 2023): the longest n-gram that ends the text is searched in the text itself, and
what followed it there is proposed. It needs no weights and no forward, and decides speed wherever text is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from env.errors import ParameterError
from env.growth import Candidates
from env.sampling import TokenChooser
from env.tree import IntArray, TokenTree

__all__ = ["LookupDraft"]


class LookupDraft:
    """Drafts from the text so far.

    A match of m tokens counts as right with probability 1 - 1/m, and among several continuations of matches of equal
    length the latest one comes first. It is a rule of thumb: what matters is that longer matches count for more.

    Args:
        shortest: shortest n-gram worth following [tokens].
        longest: longest n-gram compared [tokens].

    Raises:
        ParameterError: `shortest` is under 2, where the rule gives no probability, or over `longest`.
    """

    kind = "lookup"
    needs_features = False
    context_limit: int | None = None
    forward_seconds = 0.0

    def __init__(self, shortest: int = 2, longest: int = 8) -> None:
        if not 2 <= shortest <= longest:
            raise ParameterError(f"Prompt lookup needs 2 <= shortest <= longest; got {shortest} and {longest}.")
        self.shortest, self.longest = shortest, longest

    def start(self, chooser: TokenChooser) -> None:
        """See `Draft.start`."""
        self.text: IntArray = np.empty(0, np.int64)

    def commit(self, tokens: Sequence[int], features: torch.Tensor | None, path: IntArray) -> None:
        """See `Draft.commit`."""
        self.text = np.concatenate([self.text, np.asarray(tokens, np.int64)])

    def expand(self, tree: TokenTree, nodes: IntArray, k: int) -> Candidates:
        """See `Draft.expand`."""
        tokens = np.zeros((len(nodes), k), np.int64)
        log_probs = np.full((len(nodes), k), -np.inf)
        for row, node in enumerate(nodes):
            path = np.flatnonzero(tree.ancestors[node])[1:]  # the root is the last token of the text
            self._continuations(tree.token[path], tokens[row], log_probs[row])
        return Candidates(tokens, log_probs)

    def _continuations(self, path: IntArray, tokens: IntArray, log_probs: np.ndarray) -> None:
        """Fills in the continuations after the text and `path`, those of the longest matches first."""
        left, rank = 1.0, 0
        for token, length in self._followers(path):
            if token in tokens[:rank]:
                continue
            probability = left * (1 - 1 / length)
            tokens[rank], log_probs[rank] = token, np.log(probability)
            left -= probability
            rank += 1
            if rank == len(tokens):
                return

    def _followers(self, path: IntArray) -> Iterator[tuple[int, int]]:
        """Tokens that followed a match and the match's length: the longest first, and of equals the latest."""
        for length, ends in self._matches(path):
            for end in ends[::-1]:
                yield int(self.text[end + 1]), length

    def _matches(self, path: IntArray) -> list[tuple[int, IntArray]]:
        """Lengths, longest first, and where in the text the n-grams end that equal the last one of text and `path`."""
        ending = np.concatenate([self.text[-self.longest :], path])[-self.longest :][::-1]
        ends = np.arange(len(self.text) - 1)  # a match may end anywhere that something follows
        matches: list[tuple[int, IntArray]] = []
        for length, token in enumerate(ending.tolist(), start=1):
            ends = ends[ends >= length - 1]
            ends = ends[self.text[ends - length + 1] == token]
            if not ends.size:
                break
            matches.append((length, ends))
        return [match for match in reversed(matches) if match[0] >= self.shortest]

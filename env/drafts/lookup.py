"""Prompt lookup: guess that the text goes on as it did the last time.

After prompt lookup decoding (Saxena 2023): the longest n-gram that ends the text is searched in the text itself, and
what followed it there is proposed. It needs no weights and no forward, and decides speed wherever text is copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import ParameterError
from specgym.env.drafts.calibrator import Calibrator
from specgym.env.tree.growth import Candidates
from specgym.env.tree.sampling import TokenChooser
from specgym.env.tree.tree import TokenTree

LATEST = 32
"""occurrences of an n-gram that are looked at, the latest ones"""


class LookupDraft:
    """Drafts from the text so far, and keeps count of how well that goes.

    The best continuation is what followed the longest match; of equally long ones, the latest. It is right with
    probability ``p(m) = (right[m] + strength * m / (m + 2)) / (tried[m] + strength)`` for a match of m tokens: before
    every token of the text, prompt included, the best continuation is compared with what came, and counted by the
    length of its match. The next ones are right with p(m) / 2, p(m) / 4 ... of what those before leave.

    Prior, strength and halves go by 500 answers of SmolLM2-135M-Instruct, at temperature 0 and at 1. There the best
    continuation of a match of two tokens was right in 0.55 and 0.35 of all cases, of eight in 0.83 and 0.69, of sixteen
    or more in 0.97 and 0.88. Where those before them were wrong, the second was right in 0.36 and 0.21, the third in
    0.15 and 0.11, the fourth in 0.08 and 0.08. Counting lowered the log loss of p from 0.385 to 0.357 and from 0.673 to
    0.648, against the prior alone.

    All of it is a function of the text alone, however many rounds it came in.

    Args:
        shortest: shortest n-gram worth following [tokens].
        longest: longest n-gram compared [tokens].
        strength: observations that the prior counts for.

    Raises:
        ParameterError: `shortest` is under 1 or over `longest`, or `strength` is not positive.
    """

    kind = "lookup"
    feature_layers: tuple[int, ...] | None = None
    context_limit: int | None = None
    calibrator: Calibrator | None = None
    forward_seconds = 0.0
    owed = 0

    def __init__(self, shortest: int = 2, longest: int = 16, strength: float = 8.0) -> None:
        if not 1 <= shortest <= longest:
            raise ParameterError(f"Prompt lookup needs 1 <= shortest <= longest; got {shortest} and {longest}.")
        if not 0 < strength < math.inf:
            raise ParameterError(f"Prompt lookup needs a finite strength over 0; got {strength}.")
        self.shortest, self.longest, self.strength = shortest, longest, strength

    def start(self, chooser: TokenChooser) -> None:
        """See `Draft.start`."""
        self.forget()

    def forget(self) -> None:
        """Begins a new text."""
        self.text: list[int] = []
        self.ends: dict[tuple[int, ...], list[int]] = {}  # where each n-gram ended, but the one that ends the text
        self.tried = [0] * (self.longest + 1)  # by length of the match
        self.right = [0] * (self.longest + 1)

    def commit(self, tokens: Sequence[int], features: torch.Tensor | None, path: IntArray) -> None:
        """See `Draft.commit`."""
        for token in tokens:
            self.take(token)

    def take(self, token: int) -> None:
        """Reads the text's next token, and counts whether it would have been guessed."""
        text = self.text
        guess, length = self._best(self._ending())
        if length:
            self.tried[length] += 1
            self.right[length] += guess == token
        if len(text) >= self.shortest:
            self.ends.setdefault(tuple(text[-self.shortest :]), []).append(len(text) - 1)
        text.append(token)

    def expand(self, tree: TokenTree, nodes: IntArray, k: int, entropy: bool = False) -> Candidates:
        """See `Draft.expand`. The matches are those of the text with the node's path; they lie in the text itself.

        There is no distribution here, and so no entropy.
        """
        tokens, log_probs = np.zeros((len(nodes), k), np.int64), np.full((len(nodes), k), -np.inf)
        for row, node in enumerate(nodes):
            path = tree.token[np.flatnonzero(tree.ancestors[node])[1:]]  # the root is the last token of the text
            for rank, (token, probability) in enumerate(self.after(path.tolist(), k)):
                tokens[row, rank], log_probs[row, rank] = token, math.log(probability)
        return Candidates(tokens, log_probs, np.exp(log_probs[:, 0]), log_probs > -np.inf)

    def after(self, path: list[int], k: int) -> list[tuple[int, float]]:
        """At most k tokens that may follow the text and further tokens, and their probabilities, best first."""
        return self._continuations((self._ending() + path)[-self.longest :], k)

    def at_root(self) -> tuple[int, float]:
        """Length of the longest match of the text's end and p of that, both 0 without one."""
        _, length = self._best(self._ending())
        return length, self._probability(length) if length else 0.0

    def _ending(self) -> list[int]:
        """As much of the text's end as is ever compared."""
        return self.text[-self.longest :]

    def _probability(self, length: int) -> float:
        prior = length / (length + 2)
        return (self.right[length] + self.strength * prior) / (self.tried[length] + self.strength)

    def _continuations(self, ending: list[int], k: int) -> list[tuple[int, float]]:
        """At most k tokens that may follow `ending` and their probabilities, best first."""
        longest: dict[int, int] = {}  # match by token, in the order in which the matches were found
        for end in self._occurrences(ending):
            token = self.text[end + 1]
            if longest.get(token) == self.longest:
                continue
            length = self._match(end, ending)
            if length > longest.get(token, 0):
                longest.pop(token, None)
                longest[token] = length
        found: list[tuple[int, float]] = []
        left = ceiling = share = 1.0
        for token, length in sorted(longest.items(), key=lambda item: -item[1])[:k]:
            ceiling = min(ceiling, left * share * self._probability(length))  # counts may rate a shorter match higher
            found.append((token, ceiling))
            left, share = left - ceiling, share / 2
        return found

    def _best(self, ending: list[int]) -> tuple[int, int]:
        """The likeliest token after `ending` and the length of its match, 0 without one."""
        best = (0, 0)
        for end in self._occurrences(ending):
            length = self._match(end, ending)
            if length > best[1]:
                best = self.text[end + 1], length
                if length == self.longest:
                    break
        return best

    def _occurrences(self, ending: list[int]) -> Sequence[int]:
        """Where the last `shortest` tokens of `ending` ended earlier in the text, the latest first."""
        return self.ends.get(tuple(ending[-self.shortest :]), ())[: -LATEST - 1 : -1]

    def _match(self, end: int, ending: list[int]) -> int:
        """How many tokens up to `end` of the text are those that end `ending`, of which the last few are known to."""
        length, most = self.shortest, min(len(ending), end + 1)
        while length < most and self.text[end - length] == ending[-1 - length]:
            length += 1
        return length

"""Prompt lookup with the whole text at hand, asked what it would have said anywhere within it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from specgym.env.drafts.lookup import LATEST, LookupDraft


class WholeTextLookup(LookupDraft):
    """Says at any position what `LookupDraft` says there when it has read no further.

    Args:
        text: the whole text [token ids].
    """

    def __init__(self, text: Sequence[int]) -> None:
        super().__init__()
        self.forget()
        self.until = 0
        counts = np.zeros((len(text) + 1, 2, self.longest + 1), np.int32)
        for position, token in enumerate(text):
            self.until = position
            self.take(token)
            counts[position + 1] = self.tried, self.right
        self._counts = counts
        self.until = len(text)

    def seek(self, until: int) -> None:
        """Goes to where the first `until` tokens had been read."""
        self.until = until
        self.tried, self.right = self._counts[until].tolist()

    def _ending(self) -> list[int]:
        return self.text[max(self.until - self.longest, 0) : self.until]

    def _occurrences(self, ending: list[int]) -> Sequence[int]:
        ends = self.ends.get(tuple(ending[-self.shortest :]), [])
        seen = bisect_right(ends, self.until - 2)  # something followed
        return ends[max(seen - LATEST, 0) : seen][::-1]

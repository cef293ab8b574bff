"""Recorded texts played side by side: the one place that says what a round does to the state of a text."""

from __future__ import annotations

import numpy as np

from specgym.env.common.arrays import BoolArray, IntArray

Episodes = IntArray | slice
"""numbers of episodes, or a slice of all"""


class Player:
    """The state of each of some episodes, which is what a round's outcome and time depend on.

    Args:
        first: place of each text's first root, `int64[texts]`.
        last: place of each text's end, `int64[texts]`.
        unread: committed tokens that the draft has not read at the first root of each text, `int64[texts]`.
        count: number of episodes.

    Attributes:
        text: number of each one's text, `int64[count]`.
        place: place of each one's root, `int64[count]`.
        unread: committed tokens that the draft has not read, `int64[count]`.
    """

    def __init__(self, first: IntArray, last: IntArray, unread: IntArray, count: int) -> None:
        self._first, self._last, self._unread = first, last, unread
        self.text, self.place, self.unread = np.zeros((3, count), np.int64)

    def begin(self, which: Episodes, texts: IntArray) -> None:
        """Begins texts with their first token, as the episodes `which`."""
        self.text[which], self.place[which], self.unread[which] = texts, self._first[texts], self._unread[texts]

    def committed(self, which: Episodes, accepted: IntArray) -> IntArray:
        """Returns the tokens that rounds commit: a bonus token follows unless a text ends on a draft token."""
        return np.asarray(np.minimum(accepted + 1, self._last[self.text[which]] - self.place[which]))

    def play(self, which: Episodes, committed: IntArray, asked: BoolArray, kept: IntArray) -> None:
        """Plays a round of the episodes `which`, each at most once.

        Args:
            which: the episodes, n of them.
            committed: tokens that the round commits, `int64[n]`.
            asked: whether the draft was asked, and so has read all tokens before, `bool[n]`.
            kept: accepted nodes that the draft need not read again, `int64[n]`.
        """
        self.unread[which] = np.where(asked, 0, self.unread[which]) + committed - kept
        self.place[which] += committed

    @property
    def ended(self) -> BoolArray:
        """Which episodes are at the end of their text, `bool[count]`."""
        return np.asarray(self.place == self._last[self.text])

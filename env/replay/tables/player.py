"""Recorded texts played side by side, and the one rule of what a round does to the state of a text."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np

from specgym.env.common.arrays import BoolArray, FloatArray, IntArray

Episodes = IntArray | slice
"""numbers of episodes, or a slice of all"""
Count = TypeVar("Count", int, IntArray)


class Rounds(NamedTuple):
    """A round of each of n texts, with its time."""

    tokens: IntArray
    """tokens committed, `int64[n]`"""
    accepted: IntArray
    """draft tokens among them that the target accepted, `int64[n]`"""
    drafted: IntArray
    """nodes verified, without the root, `int64[n]`"""
    asked: BoolArray
    """whether the draft was asked, and so has read all tokens before, `bool[n]`"""
    kept: IntArray
    """accepted nodes that the draft need not read again, `int64[n]`"""
    seconds: FloatArray
    """predicted times, `float64[n]` [s]"""


def unread_after(unread: Count, asked: bool | BoolArray, committed: Count, kept: Count) -> Count:
    """Returns how many committed tokens the draft has not read after a round, for one text or for many.

    Args:
        unread: the same before the round.
        asked: whether the round asked the draft, which then has read all tokens before.
        committed: tokens that the round commits.
        kept: accepted nodes that the draft need not read again.
    """
    return unread * (1 - asked) + committed - kept  # type: ignore[return-value]  # False and True count as 0 and 1


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

    def play(self, which: Episodes, rounds: Rounds) -> None:
        """Plays a round of the episodes `which`, each at most once."""
        self.unread[which] = unread_after(self.unread[which], rounds.asked, rounds.tokens, rounds.kept)
        self.place[which] += rounds.tokens

    @property
    def ended(self) -> BoolArray:
        """Which episodes are at the end of their text, `bool[count]`."""
        return np.asarray(self.place == self._last[self.text])

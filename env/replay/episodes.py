"""Many replayed episodes stepped together: what they share and where each of them stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specgym.env.common.arrays import BoolArray, FloatArray, IntArray
from specgym.env.gym.features import FEATURES, FeatureVector
from specgym.env.gym.grid import ParameterGrid
from specgym.env.latency.latency_profile import LatencyProfile
from specgym.env.replay.action_table import ActionTable
from specgym.env.replay.pricing import RoundTimes
from specgym.env.replay.tabulation import TraceTable
from specgym.env.replay.traces.records import TraceHeader, TraceText
from specgym.env.replay.vector_features import (
    LAST_COLUMNS,
    MACHINE_COLUMNS,
    MARKS,
    PLACE_COLUMNS,
    WINDOW_COLUMNS,
    Marks,
    last_features,
    place_observations,
    round_marks,
    table_of,
    window_features,
)
from specgym.env.tree.observation import WINDOW


@dataclass(frozen=True)
class Rounds:
    """A round of each of n episodes."""

    tokens: IntArray
    """tokens committed, `int64[n]`"""
    accepted: IntArray
    """draft tokens among them that the target accepted, `int64[n]`"""
    drafted: IntArray
    """nodes verified, without the root, `int64[n]`"""
    depth: IntArray
    """of the trees, `int64[n]` [tokens]"""
    seconds: FloatArray
    """predicted times, `float64[n]` [s]"""
    plain_steps: FloatArray
    """the same in plain rounds at the same root, `float64[n]`"""


class ReplayTables:
    """What all episodes share: texts, tables of outcomes, machines. Places are those of `ActionTable`.

    Args:
        texts: the texts, each with a round to steer; greedy and sampled ones are told apart.
        header: of their trace.
        profiles: what rounds take, one machine or several.
        grid: what actions stand for.
        observes_draft: whether observations hold the draft's opinion of the root, which every round pays for.

    Attributes:
        texts: the texts in the order of their places, greedy ones first.
        first: place of each text's first root, `int64[texts]`.
        last: place of its end, `int64[texts]`.
        context: position of each place's token in its text, `int64[places]`.

    Raises:
        TraceError: there is no text.
        UnrecordedError: the trace holds no draft's opinion of some root.
    """

    def __init__(
        self,
        texts: Sequence[TraceText],
        header: TraceHeader,
        profiles: Sequence[LatencyProfile],
        grid: ParameterGrid,
        observes_draft: bool,
    ) -> None:
        modes = [mode for mode in (True, False) if any(text.settings.greedy == mode for text in texts)]
        corpora = [
            TraceTable([text for text in texts if text.settings.greedy == mode], header) for mode in modes or [True]
        ]
        self.texts = [text for corpus in corpora for text in corpus.texts]
        self.profiles, self.observes_draft = list(profiles), observes_draft
        self.feature_draft = header.draft_kind == "feature"
        self.prompt = np.array([text.prompt for text in self.texts])
        lengths = np.array([len(text.tokens) for text in self.texts]) - self.prompt
        self.first: IntArray = np.cumsum(lengths) - lengths
        self.last: IntArray = self.first + lengths - 1
        self.ended = np.array([text.tokens[-1] in header.end_tokens for text in self.texts])
        self.greedy = np.array([text.settings.greedy for text in self.texts])
        seen = [observation for corpus in corpora for observation in place_observations(corpus, observes_draft)]
        self.context: IntArray = np.array([observation.position for observation in seen])
        self.place_features = table_of(seen, PLACE_COLUMNS).astype(np.float32)
        contexts = (int(self.context.min()), int(self.context.max()) + 1)
        self.machines = RoundTimes(profiles, modes, contexts, observes_draft)
        self.machine_features = self.machines.features.astype(np.float32)
        self.table = ActionTable(corpora, grid)
        self.marks: Marks = np.empty((0, MARKS), np.int32)
        self.last_features = np.empty((0, LAST_COLUMNS.stop - LAST_COLUMNS.start), np.float32)
        self._note_outcomes()

    def choose(self, actions: npt.ArrayLike) -> IntArray:
        """See `ActionTable.choose`. Raises `UnmeasuredError` too, if a profile does not know a round's rows."""
        chosen = self.table.choose(np.asarray(actions))
        self._note_outcomes()
        return chosen

    def _note_outcomes(self) -> None:
        """Works out what is needed of the outcomes that are new."""
        book = self.table.book
        if len(book) == len(self.marks):
            return
        self.machines.price(book)
        rounds = [book.fact(name)[len(self.marks) :] for name in ("accepted", "drafted", "depth")]
        self.marks = np.concatenate([self.marks, round_marks(*rounds)])
        self.last_features = np.concatenate([self.last_features, last_features(*rounds).astype(np.float32)])
        self.asked, self.kept = book.fact("asked") > 0, book.fact("kept")
        self.accepted, self.drafted, self.depth = (book.fact(name) for name in ("accepted", "drafted", "depth"))


class EpisodeStates:
    """Where each of some episodes stands.

    Args:
        replays: what they share.
        count: how many there are.

    Attributes:
        text: number of each one's text, `int64[count]`.
        profile: number of each one's latency profile, `int64[count]`.
        place: of each one's root, `int64[count]`.
    """

    def __init__(self, replays: ReplayTables, count: int) -> None:
        self.replays, self.count = replays, count
        self.text, self.profile, self.place, self._machine, self._owed, self._outcome, self._rounds = (
            np.zeros(count, np.int64) for _ in range(7)
        )
        self._window = np.zeros((count, WINDOW, MARKS), np.int32)  # a ring of the last rounds' marks
        self._sums = np.zeros((count, MARKS), np.int32)
        self._all = np.arange(count)

    def begin(self, which: IntArray, texts: IntArray, profiles: IntArray) -> None:
        """Begins texts with their first token, each on a machine: the episodes of the numbers `which`, `int64[n]`."""
        shared = self.replays
        self.text[which], self.profile[which], self.place[which] = texts, profiles, shared.first[texts]
        self._machine[which] = shared.machines.number(profiles, shared.greedy[texts])
        # At its first level the draft reads the prompt and the first token; a feature draft has no row for the first.
        self._owed[which] = shared.prompt[texts] + 1 - shared.feature_draft
        self._outcome[which] = self._rounds[which] = 0
        self._window[which] = self._sums[which] = 0

    def play(self, actions: npt.ArrayLike) -> Rounds:
        """A round of every episode.

        Args:
            actions: of the grid, `int[count, 6]`.

        Raises:
            ParameterError: an action that is not on the grid.
            UnrecordedError, UnmeasuredError: a trace or a profile does not cover an action. No round is played then.
        """
        outcome, asked, rounds = self._found(actions, self._all)
        self._owed = np.where(asked, 0, self._owed) + rounds.tokens - self.replays.kept[outcome]
        self.place = self.place + rounds.tokens
        self._remember(outcome)
        return rounds

    def foresee(self, actions: IntArray) -> Rounds:
        """The rounds that several actions would lead to now, of which none is played; those of an episode together.

        Args:
            actions: of the grid, as many for every episode, `int[count, actions, 6]`.

        Raises:
            ParameterError, UnrecordedError, UnmeasuredError: see `play`.
        """
        which = np.repeat(self._all, actions.shape[1])
        return self._found(actions.reshape(len(which), -1), which)[2]

    def _found(self, actions: npt.ArrayLike, which: IntArray) -> tuple[IntArray, BoolArray, Rounds]:
        """Outcomes of actions of the episodes `which`, whether they ask the draft model, and their rounds."""
        shared, place, machine = self.replays, self.place[which], self._machine[which]
        outcome = shared.table.outcomes(shared.choose(actions), place)
        asked = shared.asked[outcome] | shared.observes_draft
        context = shared.context[place]
        seconds = shared.machines.seconds(machine, context, outcome, np.where(asked, self._owed[which], 0))
        accepted = shared.accepted[outcome]
        tokens = np.minimum(accepted + 1, shared.last[self.text[which]] - place)  # a text may end on a draft token
        plain = shared.machines.plain[machine, context - shared.machines.first]
        drafted, depth = shared.drafted[outcome], shared.depth[outcome]
        return outcome, asked, Rounds(tokens, accepted, drafted, depth, seconds, seconds / plain)

    def ends(self) -> tuple[BoolArray, BoolArray]:
        """Which episodes have been terminated by a token that ends a text, and which truncated, `bool[count]` each."""
        done = self.place == self.replays.last[self.text]
        ended = self.replays.ended[self.text]
        return done & ended, done & ~ended

    def observe(self) -> FeatureVector:
        """What can be seen of every episode, see `feature_vector`, `float32[count, len(FEATURES)]`."""
        shared = self.replays
        seen = np.empty((self.count, len(FEATURES)), np.float32)
        seen[:, PLACE_COLUMNS] = shared.place_features[self.place]
        seen[:, LAST_COLUMNS] = shared.last_features[self._outcome]
        seen[:, WINDOW_COLUMNS] = window_features(self._sums, np.minimum(self._rounds, WINDOW))
        where = shared.context[self.place] - shared.machines.first
        seen[:, MACHINE_COLUMNS] = shared.machine_features[self._machine, where]
        return seen

    def _remember(self, outcome: IntArray) -> None:
        marks, slot = self.replays.marks[outcome], self._rounds % WINDOW
        self._sums += marks - self._window[self._all, slot]
        self._window[self._all, slot] = marks
        self._outcome, self._rounds = outcome, self._rounds + 1

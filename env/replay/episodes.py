"""Many replayed episodes stepped together: what they share, and the state of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from specgym.env.common.arrays import BoolArray, FloatArray, IntArray
from specgym.env.gym.features import FEATURES, LEVEL_HALF, ROW_HALF, FeatureVector, ObservedCosts, saturate
from specgym.env.gym.grid import ActionSpace
from specgym.env.latency.latency_profile import LatencyProfile
from specgym.env.replay import vector_features as entries
from specgym.env.replay.tables.action_table import ActionTable
from specgym.env.replay.tables.outcomes import RoundTimes
from specgym.env.replay.tables.player import Player, Rounds
from specgym.env.replay.tables.trace_table import TraceTable
from specgym.env.replay.traces.file import Trace
from specgym.env.tree.observation import WINDOW


class ReplayTables:
    """Texts, tables of outcomes and machines, which all episodes share. Places are those of `OutcomeTable`.

    Args:
        trace: the texts, at least one, each with a round to steer, greedy or sampled.
        profiles: of one machine or several.
        grid: what actions stand for.
        observes_draft: whether observations hold the draft's guesses at the root, which every round pays for.

    Attributes:
        texts: the texts in the order of their places, greedy ones first.
        first: place of each text's first root, `int64[texts]`.
        last: place of its end, `int64[texts]`.
        context: position of each place's token in its text, `int64[places]`.
        table: outcomes of actions.

    Raises:
        UnrecordedError: the trace lacks the draft's guesses at some root.
    """

    def __init__(
        self, trace: Trace, profiles: Sequence[LatencyProfile], grid: ActionSpace, observes_draft: bool
    ) -> None:
        header = trace.header
        groups = [[text for text in trace.texts if text.settings.greedy == mode] for mode in (True, False)]
        tables = [TraceTable(group, header) for group in groups if group]
        self.texts = [text for table in tables for text in table.texts]
        self.profiles, self.observes_draft = list(profiles), observes_draft
        self.unread = np.concatenate([table.unread for table in tables])
        lengths = np.array([len(text.tokens) - text.prompt for text in self.texts])
        self.first: IntArray = np.cumsum(lengths) - lengths
        self.last: IntArray = self.first + lengths - 1
        self.ended = np.array([text.tokens[-1] in header.end_tokens for text in self.texts])
        self.greedy = np.array([text.settings.greedy for text in self.texts])
        places = [observation for table in tables for observation in entries.place_observations(table, observes_draft)]
        self.context: IntArray = np.array([observation.position for observation in places])
        self.place_features = entries.feature_table(places, entries.PLACE_COLUMNS).astype(np.float32)
        contexts = (int(self.context.min()), int(self.context.max()) + 1)
        self.machines = RoundTimes(profiles, [table.greedy for table in tables], contexts, observes_draft)
        halves = (LEVEL_HALF, ROW_HALF)
        machine_features = [saturate(self.machines.unit_costs[..., kind], half) for kind, half in enumerate(halves)]
        self.machine_features = np.stack(machine_features, axis=-1).astype(np.float32)
        self.table = ActionTable(tables, grid)
        self.counts: entries.Counts = np.empty((0, entries.COUNTS), np.int32)
        self.last_features = np.empty((0, entries.LAST_COLUMNS.stop - entries.LAST_COLUMNS.start), np.float32)
        self._add_outcomes()

    def choose(self, actions: npt.ArrayLike) -> IntArray:
        """See `ActionTable.choose`. Raises `UnmeasuredError` too, if a profile does not know a round's rows."""
        chosen = self.table.choose(np.asarray(actions))
        self._add_outcomes()
        return chosen

    def _add_outcomes(self) -> None:
        """Computes times and features of the outcomes that are new."""
        index, known = self.table.index, len(self.counts)
        if len(index) == known:
            return
        self.machines.add(index)
        fresh = index.since(known)
        self.counts = np.concatenate([self.counts, entries.round_counts(fresh)])
        self.last_features = np.concatenate([self.last_features, entries.last_features(fresh).astype(np.float32)])
        self.outcomes = index.since(0)


class EpisodeStates(Player):
    """The state of each of some episodes, with a machine and the history that observations need.

    Args:
        replays: what they share.
        count: how many there are.

    Attributes:
        profile: number of each one's latency profile, `int64[count]`.
    """

    def __init__(self, replays: ReplayTables, count: int) -> None:
        super().__init__(replays.first, replays.last, replays.unread, count)
        self.replays, self.count = replays, count
        self.profile, self._machine, self._outcome, self._rounds = np.zeros((4, count), np.int64)
        self._window = np.zeros((count, WINDOW, entries.COUNTS), np.int32)  # a ring of the last rounds' counts
        self._sums = np.zeros((count, entries.COUNTS), np.int32)
        self._all = np.arange(count)

    def begin_on(self, which: IntArray, texts: IntArray, profiles: IntArray) -> None:
        """Begins texts with their first token, each on a machine, as the episodes `which`, `int64[n]`."""
        self.begin(which, texts)
        self.profile[which] = profiles
        self._machine[which] = self.replays.machines.number(profiles, self.replays.greedy[texts])
        self._outcome[which] = self._rounds[which] = 0
        self._window[which] = self._sums[which] = 0

    def act(self, actions: npt.ArrayLike) -> Rounds:
        """Plays a round of every episode.

        Args:
            actions: of the grid, `int[count, 6]`.

        Raises:
            ParameterError: an action that is not on the grid.
            UnrecordedError, UnmeasuredError: a trace or a profile does not cover an action. No round is played then.
        """
        outcome, rounds = self._rounds_of(actions, self._all)
        self.play(slice(None), rounds)
        counts, slot = self.replays.counts[outcome], self._rounds % WINDOW
        self._sums += counts - self._window[self._all, slot]
        self._window[self._all, slot] = counts
        self._outcome, self._rounds = outcome, self._rounds + 1
        return rounds

    def preview(self, actions: IntArray) -> Rounds:
        """Returns the rounds that several actions would lead to now; none is played. Those of an episode are together.

        Args:
            actions: of the grid, as many for every episode, `int[count, actions, 6]`.

        Raises:
            ParameterError, UnrecordedError, UnmeasuredError: see `act`.
        """
        which = np.repeat(self._all, actions.shape[1])
        return self._rounds_of(actions.reshape(len(which), -1), which)[1]

    def _rounds_of(self, actions: npt.ArrayLike, which: IntArray) -> tuple[IntArray, Rounds]:
        """Outcomes of actions of the episodes `which`, and the rounds."""
        shared, place, machine = self.replays, self.place[which], self._machine[which]
        outcome = shared.table.numbers(shared.choose(actions), place)
        outcomes = shared.outcomes
        asked = outcomes.asked[outcome] | shared.observes_draft
        context = shared.context[place]
        seconds = shared.machines.seconds(machine, context, outcome, np.where(asked, self.unread[which], 0))
        accepted, drafted, kept = (values[outcome] for values in (outcomes.accepted, outcomes.drafted, outcomes.kept))
        return outcome, Rounds(self.committed(which, accepted), accepted, drafted, asked, kept, seconds)

    @property
    def plain_seconds(self) -> FloatArray:
        """Time of a plain round at each episode's root, `float64[count]` [s]."""
        machines = self.replays.machines
        return machines.plain[self._machine, self.replays.context[self.place] - machines.first]

    @property
    def depth(self) -> IntArray:
        """Depth of each episode's last tree, `int64[count]` [tokens]."""
        return self.replays.outcomes.depth[self._outcome]

    def ends(self) -> tuple[BoolArray, BoolArray]:
        """Which episodes have been terminated by a token that ends a text, and which truncated, `bool[count]` each."""
        done, by_token = self.ended, self.replays.ended[self.text]
        return done & by_token, done & ~by_token

    def observe(self) -> FeatureVector:
        """Returns the observation of every episode, see `feature_vector`, `float32[count, len(FEATURES)]`."""
        shared = self.replays
        features = np.empty((self.count, len(FEATURES)), np.float32)
        features[:, entries.PLACE_COLUMNS] = shared.place_features[self.place]
        features[:, entries.LAST_COLUMNS] = shared.last_features[self._outcome]
        features[:, entries.WINDOW_COLUMNS] = entries.window_features(self._sums, np.minimum(self._rounds, WINDOW))
        where = shared.context[self.place] - shared.machines.first
        features[:, entries.MACHINE_COLUMNS] = shared.machine_features[self._machine, where]
        return features

    def costs(self) -> ObservedCosts:
        """Returns the costs that every episode's observation holds, arrays of `[count]`."""
        shared = self.replays
        costs = shared.machines.unit_costs[self._machine, shared.context[self.place] - shared.machines.first]
        return ObservedCosts(costs[:, 0], costs[:, 1], shared.greedy[self.text])

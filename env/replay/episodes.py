"""Many replayed episodes stepped together: what they share, and the state of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from specgym.env.common.arrays import BoolArray, FloatArray, IntArray
from specgym.env.gym.features import FEATURES, LEVEL_HALF, ROW_HALF, FeatureVector, ObservedCosts, saturate
from specgym.env.gym.grid import ActionSpace
from specgym.env.latency.latency_profile import LatencyProfile
from specgym.env.replay import vector_features as entries
from specgym.env.replay.tables.action_table import ActionTable
from specgym.env.replay.tables.outcomes import FACTS, Outcomes, RoundTimes
from specgym.env.replay.tables.player import Episodes, Player, Rounds
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
        self.outcomes: Outcomes | None = None  # by number, once they are tabulated

    def tabulate_all(self, progress: Callable[[int], None]) -> None:
        """See `OutcomeTable.tabulate_all`. Raises `UnmeasuredError` too, if a profile does not know a round's rows."""
        if self.outcomes is None:
            self.table.tabulate_all(progress)
            self.machines.add(self.table.index)
            outcomes = self.table.index.since(0)
            self.outcomes = outcomes._replace(deeper_rows=outcomes.deeper_rows[:, :0])  # their times are known
            self.counts = entries.round_counts(outcomes)
            self.last_features = entries.last_features(outcomes).astype(np.float32)


class EpisodeStates(Player):
    """The state of each of some episodes, with a machine and the history that observations need.

    Args:
        replays: what they share.
        count: how many there are.

    Attributes:
        profile: number of each one's latency profile, `int64[count]`.
        depth: of each one's last tree, `int64[count]` [tokens].
    """

    def __init__(self, replays: ReplayTables, count: int) -> None:
        super().__init__(replays.first, replays.last, replays.unread, count)
        self.replays, self.count = replays, count
        self.profile, self.depth, self._machine, self._rounds = np.zeros((4, count), np.int64)
        self._last_round = np.zeros((count, entries.LAST_COLUMNS.stop - entries.LAST_COLUMNS.start), np.float32)
        self._window = np.zeros((count, WINDOW, entries.COUNTS), np.int32)  # a ring of the last rounds' counts
        self._sums = np.zeros((count, entries.COUNTS), np.int32)
        self._all = np.arange(count)
        self._no_round = entries.last_features(Outcomes.of(np.zeros((1, FACTS), np.int32)))

    def begin_on(self, which: IntArray, texts: IntArray, profiles: IntArray) -> None:
        """Begins texts with their first token, each on a machine, as the episodes `which`, `int64[n]`."""
        self.begin(which, texts)
        self.profile[which] = profiles
        self._machine[which] = self.replays.machines.number(profiles, self.replays.greedy[texts])
        self._last_round[which] = self._no_round
        self._rounds[which] = 0
        self._window[which] = self._sums[which] = 0

    def act(self, actions: npt.ArrayLike, which: Episodes) -> Rounds:
        """Plays a round of the episodes `which`, each at most once.

        Args:
            actions: of the grid, `int[n, 6]`.
            which: the episodes; a slice of all takes less time.

        Raises:
            ParameterError: an action that is not on the grid.
            UnrecordedError, UnmeasuredError: a trace or a profile does not cover an action. No round is played then.
        """
        timed, outcomes, rounds = self._rounds_of(actions, which)
        self.play(which, rounds)
        if isinstance(timed, Outcomes):
            counts, last_round = entries.round_counts(outcomes), entries.last_features(outcomes).astype(np.float32)
        else:
            counts, last_round = self.replays.counts[timed], self.replays.last_features[timed]
        slot = self._rounds[which] % WINDOW
        numbers = self._all[which]
        self._sums[which] += counts - self._window[numbers, slot]
        self._window[numbers, slot] = counts
        self.depth[which], self._last_round[which] = outcomes.depth, last_round
        self._rounds[which] += 1
        return rounds

    def preview(self, actions: IntArray) -> Rounds:
        """Returns the rounds that several actions would lead to now; none is played. Those of an episode are together.

        Args:
            actions: of the grid, as many for every episode, `int[count, actions, 6]`.

        Raises:
            ParameterError, UnrecordedError, UnmeasuredError: see `act`.
        """
        which = np.repeat(self._all, actions.shape[1])
        return self._rounds_of(actions.reshape(len(which), -1), which)[2]

    def _rounds_of(self, actions: npt.ArrayLike, which: Episodes) -> tuple[Outcomes | IntArray, Outcomes, Rounds]:
        """Returns outcomes or, if they are tabulated, their numbers; outcomes, perhaps without rows; and the rounds."""
        shared, place, machine = self.replays, self.place[which], self._machine[which]
        choices = shared.table.choose(np.asarray(actions))
        timed: Outcomes | IntArray
        if shared.outcomes is None:
            timed = outcomes = shared.table.grown(choices, place)
        else:
            timed = shared.table.numbers(choices, place)
            facts = [values[timed] for values in shared.outcomes[:FACTS]]
            outcomes = Outcomes._make([*facts, shared.outcomes.deeper_rows[:0]])
        asked = outcomes.asked | shared.observes_draft
        context, unread = shared.context[place], np.where(asked, self.unread[which], 0)
        seconds = shared.machines.seconds(machine, context, timed, unread)
        tokens = self.committed(which, outcomes.accepted)
        return timed, outcomes, Rounds(tokens, outcomes.accepted, outcomes.drafted, asked, outcomes.kept, seconds)

    @property
    def plain_seconds(self) -> FloatArray:
        """Time of a plain round at each episode's root, `float64[count]` [s]."""
        machines = self.replays.machines
        return machines.plain[self._machine, self.replays.context[self.place] - machines.first]

    def ends(self) -> tuple[BoolArray, BoolArray]:
        """Which episodes have been terminated by a token that ends a text, and which truncated, `bool[count]` each."""
        done, by_token = self.ended, self.replays.ended[self.text]
        return done & by_token, done & ~by_token

    def observe(self, which: Episodes = slice(None)) -> FeatureVector:
        """Returns the observations of n episodes, by default of all, see `feature_vector`.

        `float32[n, len(FEATURES)]`.
        """
        shared, place, rounds = self.replays, self.place[which], np.minimum(self._rounds[which], WINDOW)
        features = np.empty((len(place), len(FEATURES)), np.float32)
        features[:, entries.PLACE_COLUMNS] = shared.place_features[place]
        features[:, entries.LAST_COLUMNS] = self._last_round[which]
        features[:, entries.WINDOW_COLUMNS] = entries.window_features(self._sums[which], rounds)
        where = shared.context[place] - shared.machines.first
        features[:, entries.MACHINE_COLUMNS] = shared.machine_features[self._machine[which], where]
        return features

    def costs(self) -> ObservedCosts:
        """Returns the costs that every episode's observation holds, arrays of `[count]`."""
        shared = self.replays
        costs = shared.machines.unit_costs[self._machine, shared.context[self.place] - shared.machines.first]
        return ObservedCosts(costs[:, 0], costs[:, 1], shared.greedy[self.text])

"""Observations of many episodes at once, entry by entry as `feature_vector` makes them.

A vector has entries of four kinds: of the place in a text, of the last round, of the window of past rounds, and of the
machine. Those of places and machines are computed once, as tables of `feature_vector`'s own values. A round adds counts
to its window; only the window's sums are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from specgym.env.common.arrays import FloatArray, IntArray
from specgym.env.drafts.merged import LOOK_AHEAD
from specgym.env.gym.features import FEATURES, WINDOW_DEPTHS, FeatureGroup, feature_columns, feature_values, saturate
from specgym.env.replay.tables.outcomes import Outcomes
from specgym.env.replay.tables.trace_table import TraceTable
from specgym.env.replay.traces.recorded_trees import RecordedLookup
from specgym.env.tree.observation import ROOT_CHILDREN, WINDOW, Observation
from specgym.env.tree.tree import TokenForest

_LAST = ("last_depth", "last_drafted", "last_accepted")
_WINDOW = ("rounds", "speculating", "accepted_mean", "accepted_of_depth", "accepted_of_nodes")

Counts: TypeAlias = npt.NDArray[np.int32]

COUNTS = 4 + 2 * len(WINDOW_DEPTHS)
"""number of counts of a round"""


def _columns(*groups: FeatureGroup) -> slice:
    """Returns the columns of some groups of features, which are adjacent."""
    columns = feature_columns(groups).tolist()
    assert columns == list(range(columns[0], columns[-1] + 1)), "the groups are adjacent"
    return slice(columns[0], columns[-1] + 1)


PLACE_COLUMNS = _columns("position", "sampling", "lookup", "draft")
LAST_COLUMNS = _columns("last_round")
WINDOW_COLUMNS = _columns("history")
MACHINE_COLUMNS = _columns("machine")
assert [feature.name for feature in FEATURES[LAST_COLUMNS.start : WINDOW_COLUMNS.stop]] == [
    *_LAST,
    *_WINDOW,
    *(f"accepted_to_{depth}" for depth in WINDOW_DEPTHS),
], "last_features() and window_features() compute the entries in this order"


def feature_table(observations: Sequence[Observation], columns: slice) -> FloatArray:
    """Returns some entries of observations, `float64[observations, columns]`."""
    rows = [feature_values(observation)[columns] for observation in observations]
    return np.array(rows, np.float64).reshape(len(observations), len(FEATURES[columns]))


def place_observations(table: TraceTable, observes_draft: bool) -> list[Observation]:
    """Returns observations at every token of the answers, text after text, ends included.

    Only those fields are filled that the place decides.

    Raises:
        UnrecordedError: the trace lacks the draft's guesses at some root.
    """
    guesses: Iterator[tuple[float, ...]] = iter(_root_log_probs(table)) if observes_draft else repeat(())
    observations = []
    for index, text in enumerate(table.texts):
        lookup, limit = table.lookups[index], int(table.limit[index] - table.start[index])
        for position in range(text.prompt, len(text.tokens)):
            lookup.seek(position + 1)
            match, rate = lookup.at_root()
            observations.append(
                Observation(
                    position=position,
                    generated=position + 1 - text.prompt,
                    remaining=limit - position - 1,
                    lookup_match=match,
                    lookup_rate=rate,
                    greedy=table.greedy,
                    root_log_probs=next(guesses) if position < len(text.tokens) - 1 else (),
                )
            )
    return observations


def _root_log_probs(table: TraceTable) -> list[tuple[float, ...]]:
    """The draft's guesses at every root, see `Observation.root_log_probs`."""
    forest, trees = TokenForest(table.tokens[table.roots]), np.arange(len(table.roots))
    candidates = RecordedLookup(table.trees, table.roots)(forest, trees, LOOK_AHEAD)
    return [tuple(row[row > -np.inf][:ROOT_CHILDREN].tolist()) for row in candidates.log_probs]


def last_features(outcomes: Outcomes) -> FloatArray:
    """Returns the entries of the last round, for each of n outcomes, `float64[n, columns]`."""
    depth, drafted = outcomes.depth.astype(np.float64), outcomes.drafted.astype(np.float64)
    return np.stack([saturate(depth, 4), saturate(drafted, 16), (outcomes.accepted + 0.5) / (depth + 1)], axis=1)


def round_counts(outcomes: Outcomes) -> Counts:
    """Returns what n rounds add to the sums of their windows, `int32[n, COUNTS]`.

    The first counts are: whether there was a tree, tokens accepted, depth, nodes. The others say of each of some depths
    whether the tree had it, then whether it was accepted that far.
    """
    depth, accepted = outcomes.depth, outcomes.accepted
    tried = depth[:, None] >= np.array(WINDOW_DEPTHS)
    right = tried & (accepted[:, None] >= np.array(WINDOW_DEPTHS))
    counts = np.stack([depth > 0, accepted, depth, outcomes.drafted], axis=1)
    return np.concatenate([counts, tried, right], axis=1, dtype=np.int32)


def window_features(sums: Counts, rounds: IntArray) -> FloatArray:
    """Returns the entries of the window, `float64[n, columns]`.

    Args:
        sums: of the counts of its rounds, `int[n, COUNTS]`.
        rounds: how many rounds there are in each window, `int64[n]`.
    """
    features = np.empty((len(sums), len(_WINDOW) + len(WINDOW_DEPTHS)))
    features[:, 0], features[:, 1] = rounds / WINDOW, sums[:, 0] / WINDOW
    mean = sums[:, 1] / np.maximum(rounds, 1)
    features[:, 2] = mean / (mean + 2)
    tried, right = sums[:, 4 : 4 + len(WINDOW_DEPTHS)], sums[:, 4 + len(WINDOW_DEPTHS) :]
    features[:, 3:5] = (sums[:, 1:2] + 0.5) / (sums[:, 2:4] + 1)
    features[:, 5:] = (right + 0.5) / (tried + 1)
    return features

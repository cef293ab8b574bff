"""Observations of many episodes at once, entry by entry what `feature_vector` says of each.

Entries of four kinds make a vector: those that a place in a text decides, the last round, the window of past rounds,
and the machine. The first and the last are known beforehand, `feature_vector`'s own values in tables. A round leaves
marks, counts that the window's entries are made of: of a window only their sums are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from specgym.env.common.arrays import FloatArray, IntArray
from specgym.env.drafts.merged import LOOK_AHEAD
from specgym.env.gym.features import FEATURES, feature_values
from specgym.env.replay.tabulation import TraceTable
from specgym.env.replay.traces.recorded_trees import RecordedLookup
from specgym.env.tree.observation import ROOT_CHILDREN, WINDOW, Observation
from specgym.env.tree.tree import TokenForest

_PLACE = ("position", "generated", "remaining", "greedy", "lookup_match", "lookup_rate", "root_log_probs")
_WINDOW = ("rounds", "speculating", "accepted_mean", "accepted_of_depth", "accepted_of_nodes")
_DEPTHS = tuple(
    int(feature.name.removeprefix("accepted_to_")) for feature in FEATURES if feature.name.startswith("accepted_to_")
)

Marks: TypeAlias = npt.NDArray[np.int32]

MARKS = 4 + 2 * len(_DEPTHS)
"""counts that a round leaves behind"""


def _columns(*fields: str) -> slice:
    """Where the entries stand that are made of these fields of an observation alone: side by side."""
    found = [index for index, feature in enumerate(FEATURES) if set(feature.source.split(", ")) <= set(fields)]
    assert found == list(range(found[0], found[-1] + 1)), "entries of a kind stand together"
    return slice(found[0], found[-1] + 1)


PLACE_COLUMNS = _columns(*_PLACE)
LAST_COLUMNS = _columns("last_drafted", "last_depth", "last_accepted")
WINDOW_COLUMNS = _columns("recent")
MACHINE_COLUMNS = _columns("level_cost", "row_cost")
assert [feature.name for feature in FEATURES[WINDOW_COLUMNS]] == [
    *_WINDOW,
    *(f"accepted_to_{depth}" for depth in _DEPTHS),
], "window_features() says what feature_vector() says"


def table_of(observations: Sequence[Observation], columns: slice) -> FloatArray:
    """Some entries of observations, `float64[observations, columns]`."""
    found = [feature_values(observation)[columns] for observation in observations]
    return np.array(found, np.float64).reshape(len(observations), len(FEATURES[columns]))


def place_observations(corpus: TraceTable, observes_draft: bool) -> list[Observation]:
    """What can be seen at every token of the answers, as far as the place decides it: text after text, ends included.

    Raises:
        UnrecordedError: the trace holds no draft's opinion somewhere.
    """
    log_probs = _root_log_probs(corpus) if observes_draft else None
    seen, root = [], 0
    for index, text in enumerate(corpus.texts):
        lookup, limit = corpus.lookups[index], int(corpus.limit[index] - corpus.start[index])
        for position in range(text.prompt, len(text.tokens)):
            ends = position == len(text.tokens) - 1
            lookup.seek(position + 1)
            match, rate = lookup.at_root()
            seen.append(
                Observation(
                    position=position,
                    generated=position + 1 - text.prompt,
                    remaining=limit - position - 1,
                    lookup_match=match,
                    lookup_rate=rate,
                    greedy=corpus.greedy,
                    root_log_probs=() if log_probs is None or ends else log_probs[root],
                )
            )
            root += not ends
    return seen


def _root_log_probs(corpus: TraceTable) -> list[tuple[float, ...]]:
    """What the draft says of every root, see `Observation.root_log_probs`."""
    roots = corpus.roots
    found = RecordedLookup(corpus.table, roots)(TokenForest(corpus.tokens[roots]), np.arange(len(roots)), LOOK_AHEAD)
    return [tuple(row[row > -np.inf][:ROOT_CHILDREN].tolist()) for row in found.log_probs]


def last_features(accepted: IntArray, drafted: IntArray, depth: IntArray) -> FloatArray:
    """The entries of the last round, `float64[n, columns]` of n rounds."""
    rounds = zip(accepted.tolist(), drafted.tolist(), depth.tolist(), strict=True)
    seen = [
        Observation(0, 0, 0, last_accepted=right, last_drafted=nodes, last_depth=levels)
        for right, nodes, levels in rounds
    ]
    return table_of(seen, LAST_COLUMNS)


def round_marks(accepted: IntArray, drafted: IntArray, depth: IntArray) -> Marks:
    """What n rounds leave behind, `int32[n, MARKS]`: whether there was a tree, tokens accepted, depth and nodes; for
    every depth told apart whether the tree had it, and whether it was accepted that far.
    """
    tried = depth[:, None] >= np.array(_DEPTHS)
    right = tried & (accepted[:, None] >= np.array(_DEPTHS))
    counts = np.stack([depth > 0, accepted, depth, drafted], axis=1)
    return np.concatenate([counts, tried, right], axis=1, dtype=np.int32)


def window_features(sums: Marks, rounds: IntArray) -> FloatArray:
    """The entries of the window.

    Args:
        sums: of the marks of the rounds in it, `int[n, MARKS]`.
        rounds: how many these are, `int64[n]`.

    Returns:
        `float64[n, columns]`.
    """
    found = np.empty((len(sums), len(_WINDOW) + len(_DEPTHS)))
    found[:, 0], found[:, 1] = rounds / WINDOW, sums[:, 0] / WINDOW
    mean = sums[:, 1] / np.maximum(rounds, 1)
    found[:, 2] = mean / (mean + 2)
    tried, right = sums[:, 4 : 4 + len(_DEPTHS)], sums[:, 4 + len(_DEPTHS) :]
    found[:, 3:5] = (sums[:, 1:2] + 0.5) / (sums[:, 2:4] + 1)
    found[:, 5:] = (right + 0.5) / (tried + 1)
    return found

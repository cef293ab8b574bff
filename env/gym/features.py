"""An observation as the vector that a policy reads.

Every feature lies within 0 and 1 by definition, so a policy needs no learned normalisation. Unbounded counts are
saturated: ``x / (x + h)`` is 1/2 at x = h. Shares start at 1/2 and count half a success
and half a failure more than there were (Krichevsky and Trofimov 1981).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from specgym.env.common.arrays import FloatArray, IntArray
from specgym.env.common.errors import UnknownNameError
from specgym.env.tree.observation import ROOT_CHILDREN, WINDOW, Observation, PastRound

FeatureVector = npt.NDArray[np.float32]
Number = TypeVar("Number", float, FloatArray)

VERSION = 1
"""changes whenever a feature does: a policy fits the version that it was trained on"""
LEVEL_HALF, ROW_HALF = 0.25, 0.05
"""costs of a level and of a row at which their features are 1/2 [plain steps]"""
WINDOW_DEPTHS = (1, 2, 3, 4, 6, 8)
"""depths that the features of past rounds distinguish [tokens]"""

_CHILD = "draft probability of the root's likeliest child no. {}"
_DEEP = "share of the trees at least {} deep that were accepted to depth {}"
_COST = "cost of one more {}, half at 1/{} of a plain step; 0 if unknown"
_RANKS = range(1, ROOT_CHILDREN + 1)
_LOG_LENGTH = 15  # log2 of the longest text that features distinguish [tokens]


FeatureGroup = Literal["position", "sampling", "lookup", "draft", "last_round", "history", "machine"]
"""features that come from the same source, and that a policy can be trained without"""
GROUPS: tuple[FeatureGroup, ...] = get_args(FeatureGroup)
"""names of the groups"""


@dataclass(frozen=True)
class Feature:
    """One entry of the vector."""

    name: str
    """name in tables and in the files of policies"""
    group: FeatureGroup
    """the group that it belongs to"""
    fields: tuple[str, ...]
    """fields of the observation that it is computed from"""
    meaning: str
    """what it measures, and by which transform it lies within 0 and 1"""


class ObservedCosts(NamedTuple):
    """The costs in many observations, as arrays of one shape."""

    level_cost: npt.NDArray[Any]
    """see `Observation.level_cost` [plain steps]"""
    row_cost: npt.NDArray[Any]
    """see `Observation.row_cost` [plain steps]"""
    greedy: npt.NDArray[Any]
    """see `Observation.greedy`"""


FEATURES: tuple[Feature, ...] = (
    Feature("context", "position", ("position",), "length of the text, log2(1 + tokens) / 15"),
    Feature("generated", "position", ("generated",), "tokens generated, log2(1 + tokens) / 15"),
    Feature("remaining", "position", ("remaining",), "tokens to the limit, log2(1 + tokens) / 15"),
    Feature("sampling", "sampling", ("greedy",), "1 if tokens are sampled, 0 if greedy"),
    Feature("lookup_match", "lookup", ("lookup_match",), "length of prompt lookup's match / 16"),
    Feature("lookup_rate", "lookup", ("lookup_rate",), "estimated probability of its next token"),
    Feature("draft_known", "draft", ("root_log_probs",), "1 if the draft model has evaluated the root"),
    *(Feature(f"draft_{rank}", "draft", ("root_log_probs",), _CHILD.format(rank)) for rank in _RANKS),
    Feature("draft_margin", "draft", ("root_log_probs",), "probability of no. 1 less that of no. 2"),
    Feature("draft_rest", "draft", ("root_log_probs",), "draft probability of all other children"),
    Feature("last_depth", "last_round", ("last_depth",), "depth of the last tree, half at 4"),
    Feature("last_drafted", "last_round", ("last_drafted",), "nodes of the last tree, half at 16"),
    Feature("last_accepted", "last_round", ("last_accepted", "last_depth"), "accepted share of that depth"),
    Feature("rounds", "history", ("recent",), "rounds remembered / 10"),
    Feature("speculating", "history", ("recent",), "remembered rounds with a tree / 10"),
    Feature("accepted_mean", "history", ("recent",), "tokens accepted a round, half at 2"),
    Feature("accepted_of_depth", "history", ("recent",), "accepted share of the trees' depth"),
    Feature("accepted_of_nodes", "history", ("recent",), "accepted share of the trees' nodes"),
    *(Feature(f"accepted_to_{depth}", "history", ("recent",), _DEEP.format(depth, depth)) for depth in WINDOW_DEPTHS),
    Feature("level_cost", "machine", ("level_cost",), _COST.format("draft level", 4)),
    Feature("row_cost", "machine", ("row_cost",), _COST.format("verified row", 20)),
)
"""the features, in the order of the vector"""


def feature_columns(groups: Iterable[str]) -> IntArray:
    """Returns the indices of the features of some groups, ascending, `int64[features]`. Raises `UnknownNameError`."""
    names = list(groups)
    for name in names:
        if name not in GROUPS:
            raise UnknownNameError("group of features", name, GROUPS)
    return np.flatnonzero([feature.group in names for feature in FEATURES])


def feature_values(observation: Observation) -> list[float]:
    """Returns the value of each feature, in order, each within 0 and 1."""
    return [
        _log(observation.position),
        _log(observation.generated),
        _log(observation.remaining),
        float(not observation.greedy),
        min(observation.lookup_match / 16, 1.0),
        observation.lookup_rate,
        *_draft_values(observation.root_log_probs),
        saturate(observation.last_depth, 4),
        saturate(observation.last_drafted, 16),
        _share(observation.last_accepted, observation.last_depth),
        *_history_values(observation.recent),
        saturate(observation.level_cost, LEVEL_HALF),
        saturate(observation.row_cost, ROW_HALF),
    ]


def feature_vector(observation: Observation) -> FeatureVector:
    """Returns the features as a policy reads them, `float32[len(FEATURES)]`."""
    return np.array(feature_values(observation), np.float32)


def feature_table() -> str:
    """Returns the features as a Markdown table."""
    lines = ["| index | name | min | max | meaning | computed from |", "|---|---|---|---|---|---|"]
    for index, feature in enumerate(FEATURES):
        lines.append(f"| {index} | `{feature.name}` | 0 | 1 | {feature.meaning} | {', '.join(feature.fields)} |")
    return "\n".join(lines)


def saturate(value: Number, half: float) -> Number:
    """Maps an unbounded count or cost to [0, 1): 1/2 at `half`."""
    return value / (value + half)


def _log(tokens: int) -> float:
    return min(math.log2(1 + tokens) / _LOG_LENGTH, 1.0)


def _share(successes: float, trials: float) -> float:
    return (successes + 0.5) / (trials + 1)


def _draft_values(root_log_probs: Sequence[float]) -> list[float]:
    known = float(bool(root_log_probs))
    children = [min(math.exp(log_prob), 1.0) for log_prob in root_log_probs[:ROOT_CHILDREN]]
    children += [0.0] * (ROOT_CHILDREN - len(children))
    return [known, *children, max(children[0] - children[1], 0.0), max(known - sum(children), 0.0)]


def _history_values(recent: Sequence[PastRound]) -> list[float]:
    rounds = len(recent)
    depths = sorted(past.depth for past in recent)
    accepted = sorted(past.accepted for past in recent)
    total = sum(accepted)
    return [
        rounds / WINDOW,
        (rounds - bisect_left(depths, 1)) / WINDOW,
        saturate(total / rounds if rounds else 0.0, 2),
        _share(total, sum(depths)),
        _share(total, sum(past.drafted for past in recent)),
        # A tree accepted to a depth has that depth, so both numbers of trees can be counted in sorted lists.
        *(
            _share(rounds - bisect_left(accepted, depth), rounds - bisect_left(depths, depth))
            for depth in WINDOW_DEPTHS
        ),
    ]

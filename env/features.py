"""An observation as a vector: what a policy reads.

Every entry lies within 0 and 1 by its definition, so that no normalisation has to be learned and kept with a policy.
Counts without a bound are squeezed: ``x / (x + h)`` is 1/2 at x = h. Shares of few trials are drawn to 1/2, by half a
success and half a failure added (Krichevsky and Trofimov 1981): nothing seen yet is 1/2, neither good nor bad.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from env.observation import ROOT_CHILDREN, WINDOW, Observation

__all__ = [
    "FEATURES",
    "LEVEL_HALF",
    "ROW_HALF",
    "VERSION",
    "Feature",
    "FeatureVector",
    "feature_table",
    "feature_vector",
    "squeezed",
    "unsqueezed",
    "unsqueezed_number",
]

LEVEL_HALF, ROW_HALF = 0.25, 0.05
"""costs of a level and of a row that are shown as 1/2 [plain steps]"""

FeatureVector = npt.NDArray[np.float32]

VERSION = 1
"""changes whenever an entry does: a policy fits the version that it was trained on"""

_LONGEST = 15  # log2 of the longest text told apart [tokens]
_DEPTHS = (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Feature:
    """One entry of the vector."""

    name: str
    """what it is called"""
    meaning: str
    """what it says"""
    source: str
    """the fields of the observation that it is made of"""
    value: Callable[[Observation], float]
    """the number, within 0 and 1"""


def _log(tokens: int) -> float:
    return min(math.log2(1 + tokens) / _LONGEST, 1.0)


def squeezed(value: float, half: float) -> float:
    """A count or a cost without a bound, within 0 and 1: 1/2 at `half`."""
    return value / (value + half)


def unsqueezed(shown: npt.NDArray[Any], half: float) -> npt.NDArray[np.float64]:
    """What `squeezed` showed, of many; 1 stands for infinity."""
    shown = shown.astype(np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(half * shown / (1 - shown))


def unsqueezed_number(shown: float, half: float) -> float:
    """The same of one number, in a fraction of the time."""
    known = float(shown)
    return half * known / (1 - known) if known < 1 else math.inf


def _share(successes: float, trials: float) -> float:
    return (successes + 0.5) / (trials + 1)


def _child(rank: int, seen: Observation) -> float:
    log_probs = seen.root_log_probs
    return min(math.exp(log_probs[rank]), 1.0) if rank < len(log_probs) else 0.0


def _rest(seen: Observation) -> float:
    found = sum(_child(rank, seen) for rank in range(ROOT_CHILDREN))
    return max(1 - found, 0.0) if seen.root_log_probs else 0.0


def _speculating(seen: Observation) -> float:
    return sum(past.depth > 0 for past in seen.recent) / WINDOW


def _accepted_mean(seen: Observation) -> float:
    return sum(past.accepted for past in seen.recent) / len(seen.recent) if seen.recent else 0.0


def _accepted_of_depth(seen: Observation) -> float:
    return _share(sum(past.accepted for past in seen.recent), sum(past.depth for past in seen.recent))


def _accepted_of_nodes(seen: Observation) -> float:
    return _share(sum(past.accepted for past in seen.recent), sum(past.drafted for past in seen.recent))


def _accepted_to(depth: int, seen: Observation) -> float:
    tried = [past.accepted >= depth for past in seen.recent if past.depth >= depth]
    return _share(sum(tried), len(tried))


_TEXT = [
    Feature("context", "length of the text, log2(1 + tokens) / 15", "position", lambda seen: _log(seen.position)),
    Feature("generated", "tokens generated, log2(1 + tokens) / 15", "generated", lambda seen: _log(seen.generated)),
    Feature("remaining", "tokens to the limit, log2(1 + tokens) / 15", "remaining", lambda seen: _log(seen.remaining)),
    Feature("sampling", "1 if tokens are sampled, 0 if greedy", "greedy", lambda seen: float(not seen.greedy)),
]
_LOOKUP = [
    Feature(
        "lookup_match",
        "length of prompt lookup's match / 16",
        "lookup_match",
        lambda seen: min(seen.lookup_match / 16, 1.0),
    ),
    Feature(
        "lookup_rate", "probability that it is right, as it rates itself", "lookup_rate", lambda seen: seen.lookup_rate
    ),
]
_DRAFT = [
    Feature(
        "draft_known",
        "1 if the draft model was asked about the root",
        "root_log_probs",
        lambda seen: float(bool(seen.root_log_probs)),
    ),
    *(
        Feature(
            f"draft_{rank + 1}",
            f"its probability of the root's likeliest child no. {rank + 1}",
            "root_log_probs",
            partial(_child, rank),
        )
        for rank in range(ROOT_CHILDREN)
    ),
    Feature(
        "draft_margin", "no. 1 less no. 2", "root_log_probs", lambda seen: max(_child(0, seen) - _child(1, seen), 0.0)
    ),
    Feature("draft_rest", "probability of all further children", "root_log_probs", _rest),
]
_LAST = [
    Feature("last_depth", "depth of the last tree, half at 4", "last_depth", lambda seen: squeezed(seen.last_depth, 4)),
    Feature("last_drafted", "its nodes, half at 16", "last_drafted", lambda seen: squeezed(seen.last_drafted, 16)),
    Feature(
        "last_accepted",
        "accepted share of its depth",
        "last_accepted, last_depth",
        lambda seen: _share(seen.last_accepted, seen.last_depth),
    ),
]
_WINDOW = [
    Feature("rounds", "rounds remembered / 10", "recent", lambda seen: len(seen.recent) / WINDOW),
    Feature("speculating", "of these, rounds with a tree / 10", "recent", _speculating),
    Feature("accepted_mean", "tokens accepted a round, half at 2", "recent", lambda s: squeezed(_accepted_mean(s), 2)),
    Feature("accepted_of_depth", "accepted share of the trees' depth", "recent", _accepted_of_depth),
    Feature("accepted_of_nodes", "accepted share of the trees' nodes", "recent", _accepted_of_nodes),
    *(
        Feature(
            f"accepted_to_{depth}",
            f"of trees of depth {depth} or more, those accepted to depth {depth}",
            "recent",
            partial(_accepted_to, depth),
        )
        for depth in _DEPTHS
    ),
]
_MACHINE = [
    Feature(
        "level_cost",
        "one more draft level, half at 1/4 of a plain step; 0 if unknown",
        "level_cost",
        lambda seen: squeezed(seen.level_cost, LEVEL_HALF),
    ),
    Feature(
        "row_cost",
        "one more verified row, half at 1/20 of a plain step; 0 if unknown",
        "row_cost",
        lambda seen: squeezed(seen.row_cost, ROW_HALF),
    ),
]

FEATURES: tuple[Feature, ...] = (*_TEXT, *_LOOKUP, *_DRAFT, *_LAST, *_WINDOW, *_MACHINE)
"""the entries, in order"""


def feature_vector(observation: Observation) -> FeatureVector:
    """The entries' values, `float32[len(FEATURES)]`, each within 0 and 1."""
    return np.array([feature.value(observation) for feature in FEATURES], np.float32)


def feature_table() -> str:
    """The entries as a Markdown table."""
    lines = ["| index | name | meaning | made of |", "|---|---|---|---|"]
    for index, feature in enumerate(FEATURES):
        lines.append(f"| {index} | `{feature.name}` | {feature.meaning} | {feature.source} |")
    return "\n".join(lines)

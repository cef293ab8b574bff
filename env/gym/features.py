"""An observation as a vector: what a policy reads.

Every entry lies within 0 and 1 by its definition, so that no normalisation has to be learned and kept with a policy.
Counts without a bound are squeezed: ``x / (x + h)`` is 1/2 at x = h. Shares of few trials are drawn to 1/2, by half a
success and half a failure added (Krichevsky and Trofimov 1981): nothing seen yet is 1/2, neither good nor bad.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from specgym.env.tree.observation import ROOT_CHILDREN, WINDOW, Observation

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


def saturate(value: float, half: float) -> float:
    """A count or a cost without a bound, within 0 and 1: 1/2 at `half`."""
    return value / (value + half)


def unsaturate(shown: npt.NDArray[Any], half: float) -> npt.NDArray[np.float64]:
    """What `saturate` showed, of many; 1 stands for infinity."""
    shown = shown.astype(np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(half * shown / (1 - shown))


def unsaturate_number(shown: float, half: float) -> float:
    """The same of one number, in a fraction of the time."""
    known = float(shown)
    return half * known / (1 - known) if known < 1 else math.inf


def _log(tokens: int) -> float:
    return min(math.log2(1 + tokens) / _LONGEST, 1.0)


def _share(successes: float, trials: float) -> float:
    return (successes + 0.5) / (trials + 1)


_TEXT = (
    Feature("context", "length of the text, log2(1 + tokens) / 15", "position"),
    Feature("generated", "tokens generated, log2(1 + tokens) / 15", "generated"),
    Feature("remaining", "tokens to the limit, log2(1 + tokens) / 15", "remaining"),
    Feature("sampling", "1 if tokens are sampled, 0 if greedy", "greedy"),
)


def _text(seen: Observation) -> Iterator[float]:
    yield _log(seen.position)
    yield _log(seen.generated)
    yield _log(seen.remaining)
    yield float(not seen.greedy)


_LOOKUP = (
    Feature("lookup_match", "length of prompt lookup's match / 16", "lookup_match"),
    Feature("lookup_rate", "probability that it is right, as it rates itself", "lookup_rate"),
)


def _lookup(seen: Observation) -> Iterator[float]:
    yield min(seen.lookup_match / 16, 1.0)
    yield seen.lookup_rate


_DRAFT = (
    Feature("draft_known", "1 if the draft model was asked about the root", "root_log_probs"),
    *(
        Feature(f"draft_{rank}", f"its probability of the root's likeliest child no. {rank}", "root_log_probs")
        for rank in range(1, ROOT_CHILDREN + 1)
    ),
    Feature("draft_margin", "no. 1 less no. 2", "root_log_probs"),
    Feature("draft_rest", "probability of all further children", "root_log_probs"),
)


def _draft(seen: Observation) -> Iterator[float]:
    known = bool(seen.root_log_probs)
    children = [min(math.exp(log_prob), 1.0) for log_prob in seen.root_log_probs[:ROOT_CHILDREN]]
    children += [0.0] * (ROOT_CHILDREN - len(children))
    yield float(known)
    yield from children
    yield max(children[0] - children[1], 0.0)
    yield max(1 - sum(children), 0.0) if known else 0.0


_LAST = (
    Feature("last_depth", "depth of the last tree, half at 4", "last_depth"),
    Feature("last_drafted", "its nodes, half at 16", "last_drafted"),
    Feature("last_accepted", "accepted share of its depth", "last_accepted, last_depth"),
)


def _last(seen: Observation) -> Iterator[float]:
    yield saturate(seen.last_depth, 4)
    yield saturate(seen.last_drafted, 16)
    yield _share(seen.last_accepted, seen.last_depth)


_WINDOW = (
    Feature("rounds", "rounds remembered / 10", "recent"),
    Feature("speculating", "of these, rounds with a tree / 10", "recent"),
    Feature("accepted_mean", "tokens accepted a round, half at 2", "recent"),
    Feature("accepted_of_depth", "accepted share of the trees' depth", "recent"),
    Feature("accepted_of_nodes", "accepted share of the trees' nodes", "recent"),
    *(
        Feature(
            f"accepted_to_{depth}",
            f"of trees of depth {depth} or more, those accepted to depth {depth}",
            "recent",
        )
        for depth in _DEPTHS
    ),
)


def _window(seen: Observation) -> Iterator[float]:
    rounds = len(seen.recent)
    drafted = [past.drafted for past in seen.recent]
    depths = sorted(past.depth for past in seen.recent)
    accepted = sorted(past.accepted for past in seen.recent)
    total = sum(accepted)
    yield rounds / WINDOW
    yield (rounds - bisect_left(depths, 1)) / WINDOW
    yield saturate(total / rounds if rounds else 0.0, 2)
    yield _share(total, sum(depths))
    yield _share(total, sum(drafted))
    for depth in _DEPTHS:  # what was accepted to a depth had it: sorted, each is a number of trees
        yield _share(rounds - bisect_left(accepted, depth), rounds - bisect_left(depths, depth))


_MACHINE = (
    Feature("level_cost", "one more draft level, half at 1/4 of a plain step; 0 if unknown", "level_cost"),
    Feature("row_cost", "one more verified row, half at 1/20 of a plain step; 0 if unknown", "row_cost"),
)


def _machine(seen: Observation) -> Iterator[float]:
    yield saturate(seen.level_cost, LEVEL_HALF)
    yield saturate(seen.row_cost, ROW_HALF)


FEATURES: tuple[Feature, ...] = (*_TEXT, *_LOOKUP, *_DRAFT, *_LAST, *_WINDOW, *_MACHINE)
"""the entries, in order"""


def feature_values(observation: Observation) -> list[float]:
    """The entries' values in order, each within 0 and 1."""
    groups = (_text, _lookup, _draft, _last, _window, _machine)
    return [value for group in groups for value in group(observation)]


def feature_vector(observation: Observation) -> FeatureVector:
    """The same as a policy reads them, `float32[len(FEATURES)]`."""
    return np.array(feature_values(observation), np.float32)


def feature_table() -> str:
    """The entries as a Markdown table."""
    lines = ["| index | name | meaning | made of |", "|---|---|---|---|"]
    for index, feature in enumerate(FEATURES):
        lines.append(f"| {index} | `{feature.name}` | {feature.meaning} | {feature.source} |")
    return "\n".join(lines)

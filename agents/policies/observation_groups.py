"""What an observation is made of, in groups that can be taken away: how much each is worth shows when it is missing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import UnknownNameError
from specgym.env.gym.features import FEATURES

_PREFIXES = {
    "position": ("context", "generated", "remaining"),
    "sampling": ("sampling",),
    "lookup": ("lookup_",),
    "draft": ("draft_",),
    "last_round": ("last_",),
    "history": ("rounds", "speculating", "accepted_"),
    "machine": ("level_cost", "row_cost"),
}

GROUPS: dict[str, tuple[str, ...]] = {
    group: tuple(feature.name for feature in FEATURES if feature.name.startswith(prefixes))
    for group, prefixes in _PREFIXES.items()
}
"""names of the features in each group; every feature is in one"""


def columns_of(groups: Sequence[str]) -> IntArray:
    """Where the features of some groups stand in an observation, `int64[features]`. Raises `UnknownNameError`."""
    for group in groups:
        if group not in GROUPS:
            raise UnknownNameError("group of observations", group, GROUPS)
    names = {name for group in groups for name in GROUPS[group]}
    return np.array([column for column, feature in enumerate(FEATURES) if feature.name in names], np.int64)

"""Tree parameters are valid or refused, and can be capped."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgym.env.common.errors import ParameterError
from specgym.env.tree.parameters import PLAIN, SOURCES, STOPS, TreeParameters
from tests.support.tiny_models import tree_parameters

NAN = float("nan")
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"base_depth": 5}, r"0 <= base_depth <= max_depth; got base_depth=5, max_depth=4"),
    ({"base_depth": -1}, r"0 <= base_depth <= max_depth; got base_depth=-1"),
    ({"base_depth": -2, "max_depth": -1}, r"base_depth=-2, max_depth=-1"),
    ({"min_branch": 0}, r"1 <= min_branch <= mid_branch <= max_branch; got min_branch=0"),
    ({"mid_branch": 5}, r"mid_branch=5, max_branch=4"),
    ({"min_branch": 3}, r"min_branch=3, mid_branch=2"),
    ({"low_confidence": 0.9}, r"low_confidence <= high_confidence <= 1; got low_confidence=0.9, high_confidence=0.8"),
    ({"high_confidence": 1.1}, r"high_confidence=1.1"),
    ({"low_confidence": -0.1}, r"low_confidence=-0.1"),
    ({"early_stop": 1.5}, r"early_stop and deep_expand from 0 to 1; got early_stop=1.5"),
    ({"deep_expand": -0.5}, r"deep_expand=-0.5"),
    ({"frontier_width": 0}, r"frontier_width and node_budget of 1 or more; got frontier_width=0"),
    ({"node_budget": 0}, r"node_budget=0"),
    ({"source": "models"}, r"source to be one of model, lookup, both; got source=models"),
    ({"source": ""}, r"source to be one of model, lookup, both; got source="),
    ({"min_reach": 1.1}, r"min_reach and min_confidence from 0 to 1; got min_reach=1.1"),
    ({"min_confidence": -0.1}, r"min_confidence=-0.1"),
    ({"max_entropy": -1.0}, r"max_entropy and min_level_reach of 0 or more, finite; got max_entropy=-1.0"),
    ({"min_level_reach": float("inf")}, r"min_level_reach=inf"),
    ({"min_reach": NAN}, r"min_reach=nan"),
    ({"min_confidence": NAN}, r"min_confidence=nan"),
    ({"max_entropy": NAN}, r"max_entropy=nan"),
    ({"min_level_reach": NAN}, r"min_level_reach=nan"),
    ({"low_confidence": NAN}, r"low_confidence=nan"),
    ({"high_confidence": NAN}, r"high_confidence=nan"),
    ({"early_stop": NAN}, r"early_stop=nan"),
    ({"deep_expand": NAN}, r"deep_expand=nan"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_values_out_of_range_or_contradictory_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=rf"^Tree parameters need .*{message}"):
        TreeParameters(**changes)


def test_the_borders_of_the_ranges_are_allowed() -> None:
    TreeParameters(base_depth=0, max_depth=0)
    TreeParameters(min_branch=1, mid_branch=1, max_branch=1, frontier_width=1, node_budget=1)
    TreeParameters(low_confidence=0, high_confidence=0, early_stop=0, deep_expand=0)
    TreeParameters(low_confidence=1, high_confidence=1, early_stop=1, deep_expand=1)
    assert [TreeParameters(source=source).source for source in SOURCES] == ["model", "lookup", "both"]


def test_parameters_do_not_change_behind_a_controllers_back() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAIN.max_depth = 3  # type: ignore[misc]


def test_a_base_depth_of_zero_is_plain_decoding_and_nothing_else_is() -> None:
    assert not PLAIN.speculates
    assert not TreeParameters(base_depth=0, max_depth=3).speculates
    assert TreeParameters(base_depth=1, max_depth=1).speculates


@given(tree_parameters())
def test_a_record_is_json_of_the_same_parameters_without_rules_that_are_off(
    parameters: TreeParameters,
) -> None:
    record = json.loads(json.dumps(parameters.record(), allow_nan=False))
    assert TreeParameters(**record) == parameters
    assert [name for name in STOPS if name not in record] == [name for name in STOPS if not getattr(parameters, name)]
    assert len(record) >= 13, "older fields are always there"


@given(tree_parameters(), st.integers(-2, 8))
def test_a_cap_lowers_the_depths_and_touches_nothing_else(parameters: TreeParameters, depth: int) -> None:
    capped = parameters.capped(depth)
    assert capped.max_depth == min(parameters.max_depth, max(depth, 0))
    assert capped.base_depth == min(parameters.base_depth, capped.max_depth)
    assert capped == dataclasses.replace(parameters, base_depth=capped.base_depth, max_depth=capped.max_depth)

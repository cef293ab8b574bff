"""Every rule's choices are on the default grid, and parameters off a grid are refused by name."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgym.controllers.registry import make_controller
from specgym.controllers.rules.phases import PHASE_1, PHASE_2, HistoryController, fixed_tree
from specgym.env.common.errors import ParameterError, UnknownNameError
from specgym.env.gym.grid import ParameterGrid
from specgym.env.tree.observation import Observation
from specgym.env.tree.parameters import PLAIN, SOURCES, Source, TreeParameters
from tests.support.tiny_models import tree_parameters

GRID = ParameterGrid()
SMALL = ParameterGrid(base_depth=(0, 3, 5), high_confidence=(0.6,), early_stop=(0.2,), source=("both",), branch=(3, 0))

actions = st.tuples(*(st.integers(0, int(count) - 1) for count in GRID.nvec)).map(np.array)


def steps_of_phase_3(source: Source) -> set[TreeParameters]:
    """Returns all parameters that the history controller can reach, from one extreme to the other and back."""
    seen = set()
    for turn in range(30):
        controller = HistoryController(source=source, window=1, patience=1)
        for accepted in [8] * turn + [0] * 30 + [8] * 30:
            seen.add(controller.act(Observation(9, 4, 40, 8, 8, accepted)))
    return seen


class TestRules:
    @pytest.mark.parametrize("source", SOURCES)
    def test_all_that_phase_3_can_step_to_is_on_the_grid(self, source: Source) -> None:
        seen = steps_of_phase_3(source)
        assert {parameters.base_depth for parameters in seen} == set(range(2, 11))
        assert {parameters.high_confidence for parameters in seen} == set(GRID.high_confidence)
        for parameters in seen:
            assert GRID.parameters(GRID.index(parameters)) == parameters

    @pytest.mark.parametrize("source", SOURCES)
    @pytest.mark.parametrize("rule", [PHASE_1, PHASE_2, *(fixed_tree(2, depth).parameters for depth in range(1, 11))])
    def test_the_other_rules_are_on_the_grid(self, rule: TreeParameters, source: Source) -> None:
        parameters = dataclasses.replace(rule, source=source)
        assert GRID.parameters(GRID.index(parameters)) == parameters

    @pytest.mark.parametrize("source", SOURCES)
    def test_parameters_that_do_not_speculate_are_plain_decoding(self, source: Source) -> None:
        assert GRID.parameters(GRID.index(dataclasses.replace(PHASE_2, base_depth=0, source=source))) == PLAIN
        plain = make_controller(f"autoregressive:source={source}").act(Observation(9, 4, 40))
        assert GRID.parameters(GRID.index(plain)) == PLAIN

    def test_the_base_is_phase_2(self) -> None:
        assert GRID.base == PHASE_2

    def test_a_step_of_phase_3_is_a_step_on_the_grid(self) -> None:
        deeper = dataclasses.replace(PHASE_2, base_depth=5, high_confidence=0.75)
        assert (GRID.index(deeper) - GRID.index(PHASE_2)).tolist() == [1, -1, 0, 0, 0, 0]


class TestActions:
    @given(actions)
    def test_an_action_of_its_parameters_index_means_the_same(self, action: np.ndarray) -> None:
        parameters = GRID.parameters(action)
        found = GRID.index(parameters)
        assert GRID.parameters(found) == parameters
        assert GRID.flat(found) <= GRID.flat(action), "of several the first"

    def test_numbers_count_through_the_last_dimension_first(self) -> None:
        numbers = [SMALL.flat(action) for action in itertools.product(*map(range, SMALL.nvec))]
        assert numbers == list(range(3 * 1 * 1 * 2 * 1 * 2))

    def test_every_set_of_parameters_comes_once(self) -> None:
        distinct = list(GRID)
        assert len(set(distinct)) == len(distinct) < GRID.nvec.prod()
        # Plain; by depth 1 to 10, early stop, deep and source: ten confidences, and a binary tree.
        assert len(distinct) == 1 + 10 * 6 * 2 * 3 * (10 + 1)
        assert {PLAIN, PHASE_1, PHASE_2} <= set(distinct)

    @given(actions)
    def test_depth_0_is_plain_decoding(self, action: np.ndarray) -> None:
        action[0] = 0
        assert GRID.parameters(action) == PLAIN

    def test_each_dimension_sets_its_parameters(self) -> None:
        assert GRID.parameters([9, 3, 2, 1, 2, 0]) == dataclasses.replace(
            PHASE_2, base_depth=9, max_depth=9, high_confidence=0.65, early_stop=0.1, source="both"
        )
        shallow = GRID.parameters([2, 0, 0, 0, 1, 0])
        assert (shallow.max_depth, shallow.deep_expand, shallow.source) == (2, 1.0, "lookup")
        assert SMALL.parameters([1, 0, 0, 0, 0, 0]) == TreeParameters(
            3, 3, 3, 3, 3, early_stop=0.2, frontier_width=128, node_budget=128, source="both"
        )

    @pytest.mark.parametrize(
        ("action", "message"),
        [
            ([0, 0, 0, 0, 0], r"an action of 6 integers \(base_depth, .*, branch\); got int64 of shape \(5,\)"),
            (3, r"got int64 of shape \(\)"),
            ([[0] * 6], r"got int64 of shape \(1, 6\)"),
            ([0.5] * 6, r"got float64"),
            ([0, 10, 0, 0, 0, 0], r"index of high_confidence within 0 and 9; got 10"),
            ([0, 0, 0, 0, -1, 0], r"index of source within 0 and 2; got -1"),
        ],
    )
    def test_an_action_off_the_grid_is_refused(self, action: object, message: str) -> None:
        for ask in (GRID.parameters, GRID.flat):
            with pytest.raises(ParameterError, match=message):
                ask(action)  # type: ignore[operator]


class TestNearest:
    @given(tree_parameters(deepest=14))
    def test_parameters_are_on_the_grid_or_refused_with_the_nearest(self, parameters: TreeParameters) -> None:
        nearest = GRID.parameters(GRID.nearest(parameters))
        assert nearest.speculates == parameters.speculates
        if nearest == parameters or not parameters.speculates:
            assert GRID.parameters(GRID.index(parameters)) == nearest
        else:
            with pytest.raises(ParameterError, match=r"not on the grid: \w+=.* \(nearest: .*\)"):
                GRID.index(parameters)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"early_stop": 0.12}, r"early_stop=0.12 \(nearest: 0.1\)\. Take"),
            (
                {"base_depth": 12, "max_depth": 12},
                r"base_depth=12 \(nearest: 10\), max_depth=12 \(nearest: 10\)\. Take",
            ),
            ({"max_depth": 6}, r"max_depth=6 \(nearest: 8\)\. Take"),
            ({"high_confidence": 0.42}, r"high_confidence=0.42 \(nearest: 0.5\)\. Take"),
            ({"node_budget": 7, "calibrated": False}, r"node_budget=7 \(nearest: 31\), calibrated=False"),
            ({"deep_expand": 0.6}, r"deep_expand=0.6 \(nearest: 0.7\)\. Take"),
        ],
    )
    def test_an_error_names_the_fields_and_the_nearest_values(self, changes: dict[str, float], message: str) -> None:
        with pytest.raises(ParameterError, match=message):
            GRID.index(dataclasses.replace(PHASE_2, **changes))

    def test_a_grid_without_plain_decoding_or_a_source_refuses_them(self) -> None:
        with pytest.raises(ParameterError, match=r"base_depth=0 \(nearest: 3\)"):
            dataclasses.replace(SMALL, base_depth=(3, 5)).index(PLAIN)
        with pytest.raises(ParameterError, match=r"source=model \(nearest: both\)"):
            SMALL.index(dataclasses.replace(SMALL.parameters([1, 0, 0, 0, 0, 1]), source="model"))


class TestMaking:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"base_depth": ()}, r"one or more values of base_depth, each once; got \(\)"),
            ({"early_stop": (0.1, 0.1)}, r"values of early_stop, each once"),
            ({"base_depth": (-1, 2)}, r"base_depth=-1"),
            ({"high_confidence": (0.2,)}, r"high_confidence=0.2"),
            ({"high_confidence": (0.2,), "branch": (2, 0)}, r"high_confidence=0.2"),
            ({"early_stop": (0.1, 1.5)}, r"early_stop=1.5"),
            ({"source": ("draft",)}, r"source to be one of .*got source=draft"),
            ({"branch": (0, -2)}, r"min_branch=-2"),
            ({"complete_budget": 0}, r"frontier_width and node_budget of 1 or more"),
        ],
    )
    def test_a_grid_of_invalid_parameters_is_refused(self, changes: dict[str, object], message: str) -> None:
        with pytest.raises(ParameterError, match=message):
            ParameterGrid(**changes)  # type: ignore[arg-type]

    @pytest.mark.parametrize("grid", [GRID, SMALL], ids=["default", "small"])
    def test_json_keeps_a_grid(self, grid: ParameterGrid) -> None:
        kept = ParameterGrid.from_dict(json.loads(json.dumps(grid.to_dict())))
        assert kept == grid
        assert hash(kept) == hash(grid)
        assert list(kept) == list(grid)
        assert GRID != SMALL

    def test_an_invalid_record_is_refused(self) -> None:
        record = GRID.to_dict()
        with pytest.raises(UnknownNameError, match=r"entry of a grid 'base_depths'. Did you mean base_depth"):
            ParameterGrid.from_dict(record | {"base_depths": [1]})
        with pytest.raises(UnknownNameError, match="entry of a base of a grid 'nodes'"):
            ParameterGrid.from_dict(record | {"base": {"nodes": 1}})
        with pytest.raises(ParameterError, match="got none of deep"):
            ParameterGrid.from_dict({name: value for name, value in record.items() if name != "deep"})
        for wrong in ({"base_depth": 3}, {"base": 3}, {"early_stop": ["a"]}):
            with pytest.raises(ParameterError, match=r"Expected a grid as to_dict\(\) gives it"):
                ParameterGrid.from_dict(record | wrong)

    def test_the_table_has_every_dimension_and_value(self) -> None:
        rows = GRID.table().splitlines()[2:]
        assert [row.split("`")[1] for row in rows] == list(ParameterGrid.dimensions)
        assert "0.5, 0.55, 0.6" in rows[1]
        assert "model, lookup, both" in rows[4]

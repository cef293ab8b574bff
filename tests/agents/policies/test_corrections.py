"""Corrections of goodput: they start from the machine's costs, and their grid of thresholds is saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from specgym.agents.policies.action_forms import Corrections, make_form
from specgym.agents.policies.policy_controller import PolicyController, find_policy
from specgym.agents.policies.policy_file import PolicyError, load_policy, save_policy
from specgym.agents.policies.threshold_grid import ThresholdGrid, default_time_price
from specgym.controllers.rules.goodput import GoodputController
from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import ParameterError
from specgym.env.gym.features import ObservedCosts
from specgym.env.gym.grid import ParameterGrid
from specgym.env.tree.observation import ROW_PRIOR, Observation
from specgym.env.tree.parameters import PLAIN, TreeParameters
from tests.support.policies import correcting_policy, observations

CHOICES = int(Corrections(ThresholdGrid()).nvec[0])


def act(grid: ThresholdGrid, choices: IntArray, seen: Observation) -> TreeParameters:
    corrections = Corrections(grid)
    return grid.parameters(corrections.actions(corrections.first, choices, seen))


class TestCorrections:
    @pytest.mark.parametrize("greedy", [True, False])
    @pytest.mark.parametrize(("level", "row"), [(0.1, 0.001), (0.15, 0.04), (0.1, 0.06), (0.02, 0.02), (0.0, 0.0)])
    def test_the_neutral_choice_is_goodput_at_the_default_price(self, level: float, row: float, greedy: bool) -> None:
        seen = Observation(10, 2, 20, level_cost=level, row_cost=row, greedy=greedy)
        grid = ThresholdGrid()
        found = act(grid, Corrections.neutral, seen)
        wanted = GoodputController(
            price=default_time_price(row or ROW_PRIOR, 0.0 if greedy else 1.0), source="both"
        ).act(seen)
        assert wanted.source == "both", "the test would be vacuous"
        assert (found.source, found.max_depth, found.node_budget) == ("both", wanted.max_depth, 31)
        for name, values in (("min_reach", grid.min_reach), ("min_level_reach", grid.min_level_reach)):
            nearest = min(values, key=lambda value, name=name: abs(np.log((value or 0.02) / getattr(wanted, name))))
            around = values.index(nearest)
            assert getattr(found, name) in values[max(around - 1, 0) : around + 2]

    def test_the_price_of_time_falls_with_the_cost_of_rows_to_one_token(self) -> None:
        for sampling in (0.0, 1.0):
            prices = [default_time_price(row, sampling) for row in (0.0, 0.03, 0.1, 0.3, 100.0)]
            assert prices == sorted(prices, reverse=True)
            assert prices[-1] == pytest.approx(1, abs=0.01)
        assert default_time_price(0.03, 0.0) > default_time_price(0.03, 1.0)

    @pytest.mark.parametrize(("level", "row"), [(0.3, 0.12), (0.3, 0.22), (0.02, 0.6)])
    def test_lookup_replaces_a_draft_model_that_cannot_pay(self, level: float, row: float) -> None:
        seen = Observation(10, 2, 20, level_cost=level, row_cost=row)
        alone = GoodputController(price=default_time_price(row, 0.0), source="model").act(seen)
        assert not alone.speculates, "the test would be vacuous"
        every = [act(ThresholdGrid(), np.array([choice]), seen) for choice in range(CHOICES)]
        assert {found.source for found in every if found.speculates} == {"lookup"}

    def test_one_observation_and_many_lead_to_the_same_actions(self) -> None:
        rng, corrections = np.random.default_rng(0), Corrections(ThresholdGrid())
        level, row = rng.choice([0, 0.005, 0.02, 0.06, 0.1, 0.2, np.inf], (2, 300))
        greedy = rng.choice([False, True], 300)
        choices = rng.integers(CHOICES, size=(300, 1))
        current = np.tile(corrections.first, (300, 1))
        together = corrections.actions(current, choices, ObservedCosts(level, row, greedy))
        rounds = zip(level.tolist(), row.tolist(), greedy.tolist(), strict=True)
        seen = [Observation(10, 2, 20, level_cost=a, row_cost=b, greedy=c) for a, b, c in rounds]
        alone = [corrections.actions(*each) for each in zip(current, choices, seen, strict=True)]
        assert together.tolist() == [found.tolist() for found in alone]
        assert len({tuple(found) for found in together.tolist()}) > 50, "the test would be vacuous"

    def test_a_correction_moves_a_threshold_by_values_of_its_scale(self) -> None:
        grid, seen = ThresholdGrid(), Observation(10, 2, 20, level_cost=0.15, row_cost=0.04)
        every = [act(grid, np.array([choice]), seen) for choice in range(CHOICES)]
        both = [found for found in every if found.source == "both"]
        rows = [found.min_reach for found in both]
        assert rows == sorted(rows)
        assert len(set(rows)) >= 5
        assert len({found.min_level_reach for found in both}) >= 4
        assert act(grid, np.array([0]), seen) == PLAIN
        assert act(grid, np.array([1]), seen).source == "lookup"


class TestFile:
    def test_a_saved_policy_is_found_and_acts_the_same(self, tmp_path: Path) -> None:
        policy = correcting_policy()
        save_policy(policy, tmp_path)
        found = find_policy(str(tmp_path))
        assert found is not None
        assert found.policy.grid == policy.grid
        expected = [PolicyController(policy).act(seen) for seen in observations()]
        assert len(set(expected)) > 3, "the test would be vacuous"
        assert [found.act(seen) for seen in observations()] == expected

    def test_a_grid_with_a_missing_field_is_refused(self, tmp_path: Path) -> None:
        path = save_policy(correcting_policy(), tmp_path)
        record = json.loads(path.read_text())
        del record["action"]["grid"]["floor"]
        path.write_text(json.dumps(record))
        with pytest.raises(PolicyError, match="none of floor"):
            load_policy(tmp_path)

    def test_corrections_need_a_grid_of_thresholds(self) -> None:
        with pytest.raises(ParameterError, match="Expected a ThresholdGrid for Corrections; got a ParameterGrid"):
            make_form("corrections", ParameterGrid())

"""Held-out machines, drawn machines and hidden features of a training setup."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from specgym.agents.learning.config import LearningConfig, LearningPlan
from specgym.agents.learning.learner import Learner
from specgym.agents.learning.setup import TrainingSetup
from specgym.agents.policies.policy_controller import PolicyController
from specgym.agents.policies.policy_file import load_policy
from specgym.env.common.errors import ParameterError, TraceError, UnknownNameError
from specgym.env.gym.features import feature_columns, feature_vector
from specgym.env.gym.grid import ParameterGrid
from tests.support.learning import make_setup
from tests.support.policies import observations

CONFIG = LearningConfig(episodes=32, rounds=4, minibatch=64, learning_rate=5e-3, hidden=(16,))
PLAN = LearningPlan(algorithm="all_actions", form="corrections", steps=32 * 4 * 24, evaluations=3, config=CONFIG)
GRID = ParameterGrid(base_depth=(0, 2, 4), high_confidence=(0.8,), early_stop=(0.1,), deep=(False,), branch=(0,))
BRIEF = LearningPlan(steps=512, evaluations=4, grid=GRID, config=CONFIG)


class TestHiddenFeatures:
    def test_a_policy_ignores_hidden_features(self, folder: Path, tmp_path: Path) -> None:
        grid = dataclasses.replace(
            LearningPlan().grid, base_depth=(0, 1, 2, 4), base=LearningPlan().grid.base.capped(6)
        )
        plan = LearningPlan(steps=128, evaluations=1, grid=grid, without=("history", "lookup"), config=CONFIG)
        setup = make_setup(folder, plan)
        hidden = feature_columns(plan.without)
        assert not setup.envs.reset()[:, hidden].any()
        Learner(setup, 0, tmp_path).run()
        policy = load_policy(tmp_path)
        assert not policy.weights["hidden.0.weight"][:, hidden].any()
        controller, seen = PolicyController(policy), observations(1)[0]
        other = dataclasses.replace(seen, recent=(), lookup_match=0, lookup_rate=0.0)
        assert (feature_vector(seen) != feature_vector(other)).any(), "the test would be vacuous"
        assert controller.act(seen) == controller.act(other)

    def test_an_unknown_group_is_refused(self) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean history"):
            LearningPlan(without=("histroy",))


class TestMachines:
    def test_a_held_out_machine_is_validated_on_and_never_learned_on(self, folder: Path, tmp_path: Path) -> None:
        setup = make_setup(folder, PLAN, held_out=("dear",))
        setup.envs.reset()
        for _ in range(30):
            setup.envs.step(np.zeros((setup.envs.num_envs, 1), np.int64))
            assert (setup.envs.info["profile"] == 1).all()
        learner = Learner(setup, 0, tmp_path)
        look = learner.run().last
        assert set(look.throughput) == {"dear", "cheap"}
        assert look.score == pytest.approx(look.throughput["cheap"])
        assert look.lam["dear"] == [1.0, 1.0]

    def test_drawn_machines_are_learned_on_and_never_validated_on(self, folder: Path, tmp_path: Path) -> None:
        setup = make_setup(folder, dataclasses.replace(PLAN, drawn_machines=2), held_out=("dear",))
        played = set()
        setup.envs.reset()
        for _ in range(30):
            setup.envs.step(np.zeros((setup.envs.num_envs, 1), np.int64))
            played |= set(setup.envs.info["profile"].tolist())
        assert played == {1, 2, 3}
        learner = Learner(setup, 0, tmp_path)
        look = learner.run().last
        assert set(look.throughput) == {"dear", "cheap"}
        assert set(look.lam) == {"dear", "cheap", "drawn 0", "drawn 1"}
        assert learner.policy().training["profiles"] == ["cheap", "drawn 0", "drawn 1"]

    @pytest.mark.parametrize(
        ("held_out", "error", "message"),
        [
            (("daer",), UnknownNameError, "Did you mean dear"),
            (("dear", "cheap"), ParameterError, "all of them are held out"),
        ],
    )
    def test_invalid_held_out_names_are_refused(
        self, folder: Path, held_out: tuple[str, ...], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            make_setup(folder, PLAN, held_out)


class TestErrors:
    def test_a_grid_that_the_trace_does_not_cover_is_refused(self, folder: Path) -> None:
        for grid in (dataclasses.replace(GRID, early_stop=(0.0, 0.1)), dataclasses.replace(GRID, base_depth=(0, 11))):
            with pytest.raises(
                ParameterError, match=r"reach 0.05 and more, down to depth 10; the grid has an early_stop"
            ):
                make_setup(folder, dataclasses.replace(BRIEF, grid=grid))
        with pytest.raises(ParameterError, match="of different names; got overhead_bound, overhead_bound"):
            TrainingSetup([folder / "tiny.sgt"], ["overhead_bound"] * 2, BRIEF)
        with pytest.raises(TraceError):
            TrainingSetup([folder / "none.sgt"], ["overhead_bound"], BRIEF)

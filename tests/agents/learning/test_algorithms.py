"""Regression on the gains of all actions: they are exact, lead to a good policy, and survive an interruption."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from specgym.agents.learning.algorithms import model_act
from specgym.agents.learning.config import LearningConfig, LearningPlan
from specgym.agents.learning.learner import Learner
from specgym.agents.learning.setup import TrainingSetup
from specgym.agents.policies.policy_file import WEIGHTS
from tests.support.learning import Interrupt, make_setup

CONFIG = LearningConfig(episodes=32, rounds=4, minibatch=64, learning_rate=5e-3, hidden=(16,))
PLAN = LearningPlan(algorithm="all_actions", form="corrections", steps=32 * 4 * 24, evaluations=3, config=CONFIG)


@pytest.fixture(scope="module")
def setup(folder: Path) -> TrainingSetup:
    return make_setup(folder, PLAN)


class TestAllActions:
    @pytest.mark.parametrize("form", ["corrections", "absolute"])
    def test_gains_are_the_rewards_of_the_choices(self, folder: Path, form: str) -> None:
        """The gain of a choice is the reward of a step with that choice, at every step."""
        grid = dataclasses.replace(
            LearningPlan().grid, base_depth=(0, 2, 4), early_stop=(0.1,), base=LearningPlan().grid.base.capped(6)
        )
        plan = dataclasses.replace(PLAN, form=form, grid=grid)
        setup, rng = make_setup(folder, plan), np.random.default_rng(0)
        envs = setup.envs
        envs.set_lam(np.array([[0.5, 0.7], [1.5, 1.9]]))
        envs.reset()
        rewards_seen = set()
        for _ in range(30):
            gains = envs.gains()
            chosen = rng.integers(len(envs.all_choices), size=envs.num_envs)
            _, rewards, _, _ = envs.step(envs.all_choices[chosen])
            np.testing.assert_allclose(gains[np.arange(envs.num_envs), chosen], rewards, atol=1e-5)
            rewards_seen |= set(np.round(rewards, 3).tolist())
        assert len(rewards_seen) > 20, "the test would be vacuous"

    def test_it_learns_where_trees_pay(self, folder: Path, tmp_path: Path) -> None:
        config = dataclasses.replace(CONFIG, epochs=8, learning_rate=1e-2)
        long = dataclasses.replace(PLAN, steps=3 * PLAN.steps, config=config)
        setup = make_setup(folder, long)
        learner = Learner(setup, 0, tmp_path)
        before = setup.validation(model_act(learner.model)).by_profile
        learner.run()
        after = setup.validation(model_act(learner.model)).by_profile
        assert before[0] < 0.98, "the test would be vacuous"
        assert after[0] > 0.99, "plain decoding, where every row costs a step"
        assert after[1] > 1.15 * before[1], "large trees, where they cost nothing"

    def test_a_resumed_run_ends_with_the_same_policy(self, setup: TrainingSetup, tmp_path: Path) -> None:
        whole = Learner(setup, 1, tmp_path / "whole").run()
        with pytest.raises(KeyboardInterrupt):
            Learner(setup, 1, tmp_path / "parts").run(Interrupt(40))
        assert 0 < Learner(setup, 1, tmp_path / "parts").done < PLAN.evaluations, "the test would be vacuous"
        again = Learner(setup, 1, tmp_path / "parts").run()
        assert [look.throughput for look in again.evaluations] == [look.throughput for look in whole.evaluations]
        files = [(tmp_path / each / WEIGHTS).read_bytes() for each in ("whole", "parts")]
        assert files[0] == files[1]

"""Policies learn the best actions where these are known, are exported exactly, and survive interruptions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specgym.agents.learning.algorithms import model_act, model_weights
from specgym.agents.learning.config import LearningConfig, LearningPlan
from specgym.agents.learning.learner import CHECKPOINT, Learner, TimePrices
from specgym.agents.learning.setup import TrainingSetup
from specgym.agents.learning.training_history import Evaluation, TrainingHistory
from specgym.agents.policies.policy_controller import PolicyController
from specgym.agents.policies.policy_file import load_policy
from specgym.env.common.errors import ModelFileError, ParameterError
from specgym.env.gym.features import FEATURES, feature_vector
from specgym.env.gym.grid import ParameterGrid
from tests.support.learning import Interrupt, make_setup
from tests.support.policies import observations

GRID = ParameterGrid(base_depth=(0, 2, 4), high_confidence=(0.8,), early_stop=(0.1,), deep=(False,), branch=(0,))
CONFIG = LearningConfig(episodes=32, rounds=32, minibatch=256, learning_rate=5e-3, hidden=(16,), memory=8)
PLAN = LearningPlan(steps=1024 * 12, evaluations=4, grid=GRID, observes_draft=False, config=CONFIG)
BRIEF = dataclasses.replace(PLAN, steps=128 * 4, config=dataclasses.replace(CONFIG, rounds=4, minibatch=64))


@pytest.fixture(scope="module")
def setup(folder: Path) -> TrainingSetup:
    return make_setup(folder, BRIEF)


class TestLearning:
    def test_one_policy_learns_the_best_actions_of_two_machines(self, folder: Path, tmp_path: Path) -> None:
        grid = dataclasses.replace(GRID, source=("model",))  # which source is best differs from text to text there
        setup = make_setup(folder, dataclasses.replace(PLAN, grid=grid))
        best = np.zeros(2)
        for action in np.ndindex(*grid.nvec):
            always = np.tile(action, (setup.validation.envs.num_envs, 1))
            best = np.maximum(best, setup.validation(lambda seen, first, always=always: always).by_profile)
        assert best[0] == pytest.approx(1.0), "trees never pay there"
        assert best[1] > 1.1, "the test would be vacuous"
        learner = Learner(setup, 0, tmp_path)
        before = setup.validation(model_act(learner.model)).by_profile
        learner.run()
        after = setup.validation(model_act(learner.model)).by_profile
        assert min(before / best) < 0.95, "the test would be vacuous"
        assert after == pytest.approx(best)

    def test_prices_become_the_policys_own_throughput(self, setup: TrainingSetup, tmp_path: Path) -> None:
        learner = Learner(setup, 0, tmp_path)
        assert learner.prices.lam.tolist() == [[1.0, 1.0], [1.0, 1.0]]
        look = learner.run().last
        assert setup.envs.envs.lam.tolist() == list(look.lam.values())
        assert look.lam["dear"][0] < 0.95
        assert look.lam["cheap"][0] > 1.05
        assert abs(look.reward["total"]) < 0.2 * look.reward["tokens"], "what is left is change since, and noise"
        assert look.reward["total"] == pytest.approx(look.reward["tokens"] - look.reward["cost"])


class TestPrices:
    def test_they_are_tokens_over_time_of_each_machine_and_mode(self) -> None:
        prices = TimePrices(2, np.array([True, False]), decay=0.5)
        info = {
            "profile": np.array([0, 0, 1, 1]),
            "text": np.array([0, 0, 1, 1]),
            "tokens": np.array([1, 3, 2, 2]),
            "plain_steps": np.array([1.0, 1.0, 4.0, 4.0]),
        }
        prices.add(info)
        assert prices.lam.tolist() == [[1.0, 1.0], [1.0, 1.0]], "nothing changes before an update"
        prices.update()
        assert prices.lam == pytest.approx(np.array([[2.0, 1.0], [1.0, 0.5]]), rel=1e-5)
        prices.add(info | {"tokens": np.array([3, 3, 2, 2])})
        prices.update()
        assert prices.lam[0, 0] == pytest.approx((0.5 * 4 + 6) / (0.5 * 2 + 2), rel=1e-5)


class TestExport:
    @pytest.mark.parametrize(
        ("algorithm", "form"), [("ppo", "absolute"), ("ppo", "increments"), ("recurrent_ppo", "absolute")]
    )
    def test_the_policy_in_numpy_chooses_as_the_librarys_does(
        self, folder: Path, tmp_path: Path, algorithm: Any, form: Any
    ) -> None:
        if algorithm == "recurrent_ppo":
            pytest.importorskip("sb3_contrib")
        grid = ParameterGrid(branch=(0,), early_stop=(0.05, 0.3), base_depth=(0, 1, 2, 4), base=GRID.base.capped(6))
        plan = dataclasses.replace(BRIEF, algorithm=algorithm, form=form, grid=grid, evaluations=1, observes_draft=True)
        learner = Learner(make_setup(folder, plan), 0, tmp_path)
        learner.run()
        controller, act = PolicyController(load_policy(tmp_path)), model_act(learner.model)
        current, chosen, steered = learner.envs.form.first, set(), 0
        for index, observation in enumerate(observations(300)):
            if index % 50 == 0:
                controller.reset()
                current, first = learner.envs.form.first, True
            seen = np.concatenate([feature_vector(observation), learner.envs.form.extra(current)])
            choice = act(seen[None], np.array([first]))[0]
            current, first = learner.envs.form.actions(current, choice, observation), False
            parameters = grid.parameters(current)
            assert controller.act(observation) == parameters
            chosen.add(parameters)
            steered += 1
        assert steered == 300
        assert len(chosen) > 1, "the test would be vacuous"

    def test_the_file_describes_the_policy(self, setup: TrainingSetup, tmp_path: Path) -> None:
        learner = Learner(setup, 3, tmp_path)
        history = learner.run()
        policy = load_policy(tmp_path, GRID)
        assert policy.training["seed"] == 3
        assert policy.training["profiles"] == ["dear", "cheap"]
        assert policy.training["settings"]["config"]["hidden"] == [16]
        assert policy.observation()["names"] == [feature.name for feature in FEATURES]
        if history.best is history.last:
            assert all((policy.weights[name] == tensor).all() for name, tensor in model_weights(learner.model).items())


def evaluations(history: TrainingHistory) -> list[Evaluation]:
    return [dataclasses.replace(look, seconds=0.0) for look in history.evaluations]


class TestResuming:
    @pytest.mark.parametrize("algorithm", ["ppo", "recurrent_ppo"])
    def test_an_interrupted_run_ends_with_the_same_weights(self, folder: Path, tmp_path: Path, algorithm: Any) -> None:
        if algorithm == "recurrent_ppo":
            pytest.importorskip("sb3_contrib")
        setup = make_setup(folder, dataclasses.replace(BRIEF, algorithm=algorithm))
        whole = Learner(setup, 1, tmp_path / "whole")
        history = whole.run()
        for after in (2, 5, 7):  # in the first part, in the second, and in the third of a run that was gone on with
            with pytest.raises(KeyboardInterrupt):
                Learner(setup, 1, tmp_path / "parts").run(Interrupt(after))
        parts = Learner(setup, 1, tmp_path / "parts")
        assert 0 < parts.done < 4, "the test would be vacuous"
        assert evaluations(parts.run()) == evaluations(history)
        assert len(history.evaluations) == 4
        expected, found = model_weights(whole.model), model_weights(parts.model)
        assert all((found[name] == tensor).all() for name, tensor in expected.items())
        for name in ("policy.json", "policy.safetensors"):
            assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        again = Learner(setup, 1, tmp_path / "whole")
        assert evaluations(again.run()) == evaluations(history), "what is finished is not begun again"

    def test_seeds_differ(self, setup: TrainingSetup, tmp_path: Path) -> None:
        scores = [Learner(setup, seed, tmp_path / str(seed)).run().last.reward for seed in (0, 1)]
        assert scores[0] != scores[1]

    def test_a_checkpoint_of_another_run_is_refused(self, setup: TrainingSetup, folder: Path, tmp_path: Path) -> None:
        Learner(setup, 0, tmp_path).run()
        changed = dataclasses.replace(BRIEF, config=dataclasses.replace(BRIEF.config, entropy=0.5))
        for other, seed in ((setup, 1), (make_setup(folder, changed), 0)):
            with pytest.raises(ParameterError, match="belongs to a training run with other settings"):
                Learner(other, seed, tmp_path)

    @pytest.mark.parametrize(
        "damage", [lambda data: data[: len(data) // 2], lambda data: data.replace(b"course", b"curse!")]
    )
    def test_a_damaged_checkpoint_is_refused(
        self, setup: TrainingSetup, tmp_path: Path, damage: Callable[[bytes], bytes]
    ) -> None:
        Learner(setup, 0, tmp_path).run()
        (tmp_path / CHECKPOINT).write_bytes(damage((tmp_path / CHECKPOINT).read_bytes()))
        with pytest.raises(ModelFileError, match=r"checkpoint.safetensors is corrupt .* Delete it"):
            Learner(setup, 0, tmp_path)


class TestErrors:
    def test_a_missing_library_is_named(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "sb3_contrib", None)
        setup = make_setup(folder, dataclasses.replace(BRIEF, algorithm="recurrent_ppo"))
        with pytest.raises(ParameterError, match=r"pip install 'specgym\[recurrent\]'"):
            Learner(setup, 0, tmp_path)

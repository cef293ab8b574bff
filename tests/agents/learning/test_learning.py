"""Policies learn what is best where that is known, are exported as they are, and do not mind being interrupted."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specgym.agents.learning.algorithms import model_act, model_weights
from specgym.agents.learning.config import LearningConfig, LearningPlan
from specgym.agents.learning.learner import CHECKPOINT, Learner
from specgym.agents.learning.setup import TrainingSetup
from specgym.agents.learning.time_price import Prices
from specgym.agents.learning.training_history import Evaluation, TrainingHistory
from specgym.agents.learning.training_report import best_seed
from specgym.agents.policies.policy_controller import PolicyController
from specgym.agents.policies.policy_file import load_policy
from specgym.env.common.errors import LimitError, ModelFileError, ParameterError, TraceError, UnknownNameError
from specgym.env.gym.features import FEATURES, feature_vector
from specgym.env.gym.grid import ParameterGrid
from tests.agents.policies.test_policies import observations
from tests.support.tiny_trace import save_tiny_world

GRID = ParameterGrid(base_depth=(0, 2, 4), high_confidence=(0.8,), early_stop=(0.1,), deep=(False,), branch=(0,))
CONFIG = LearningConfig(episodes=32, rounds=32, minibatch=256, learning_rate=5e-3, hidden=(16,), memory=8)
PLAN = LearningPlan(steps=1024 * 12, looks=4, grid=GRID, observes_draft=False, config=CONFIG)
BRIEF = dataclasses.replace(PLAN, steps=128 * 4, config=dataclasses.replace(CONFIG, rounds=4, minibatch=64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_world(tmp_path_factory.mktemp("texts"))


def classroom(folder: Path, plan: LearningPlan) -> TrainingSetup:
    return TrainingSetup([folder / "tiny.sgt"], [str(folder / "dear.json"), str(folder / "cheap.json")], plan)


@pytest.fixture(scope="module")
def room(folder: Path) -> TrainingSetup:
    return classroom(folder, BRIEF)


class TestLearning:
    def test_one_policy_learns_what_is_best_on_each_of_two_machines(self, folder: Path, tmp_path: Path) -> None:
        grid = dataclasses.replace(GRID, source=("model",))  # which source is best differs from text to text there
        room = classroom(folder, dataclasses.replace(PLAN, grid=grid))
        best = np.zeros(2)
        for action in np.ndindex(*grid.nvec):
            always = np.tile(action, (room.validation.envs.num_envs, 1))
            best = np.maximum(best, room.validation(lambda seen, first, always=always: always).by_profile())
        assert best[0] == pytest.approx(1.0), "trees never pay there"
        assert best[1] > 1.1, "the test would be vacuous"
        learner = room.learner(0, tmp_path)
        before = room.validation(model_act(learner.model)).by_profile()
        learner.run()
        after = room.validation(model_act(learner.model)).by_profile()
        assert min(before / best) < 0.95, "the test would be vacuous"
        assert after == pytest.approx(best)

    def test_prices_go_over_to_the_policys_own_throughput(self, room: TrainingSetup, tmp_path: Path) -> None:
        learner = room.learner(0, tmp_path)
        assert learner.prices.lam.tolist() == [[1.0, 1.0], [1.0, 1.0]]
        look = learner.run().looks[-1]
        assert room.envs.envs.lam.tolist() == list(look.lam.values())
        assert look.lam["dear"][0] < 0.95
        assert look.lam["cheap"][0] > 1.05
        assert abs(look.reward["total"]) < 0.2 * look.reward["tokens"], "what is left is change since, and noise"
        assert look.reward["total"] == pytest.approx(look.reward["tokens"] - look.reward["cost"])


class TestPrices:
    def test_they_are_tokens_over_time_of_each_machine_and_way(self) -> None:
        prices = Prices(2, np.array([True, False]), decay=0.5)
        told = {
            "profile": np.array([0, 0, 1, 1]),
            "text": np.array([0, 0, 1, 1]),
            "tokens": np.array([1, 3, 2, 2]),
            "plain_steps": np.array([1.0, 1.0, 4.0, 4.0]),
        }
        prices.add(told)
        assert prices.lam.tolist() == [[1.0, 1.0], [1.0, 1.0]], "nothing changes before an update"
        prices.update()
        assert prices.lam == pytest.approx(np.array([[2.0, 1.0], [1.0, 0.5]]), rel=1e-5)
        prices.add(told | {"tokens": np.array([3, 3, 2, 2])})
        prices.update()
        assert prices.lam[0, 0] == pytest.approx((0.5 * 4 + 6) / (0.5 * 2 + 2), rel=1e-5)


class TestExport:
    @pytest.mark.parametrize(
        ("algorithm", "form"), [("ppo", "absolute"), ("ppo", "increments"), ("recurrent_ppo", "absolute")]
    )
    def test_the_policy_in_numpy_does_what_the_librarys_does(
        self, folder: Path, tmp_path: Path, algorithm: Any, form: Any
    ) -> None:
        if algorithm == "recurrent_ppo":
            pytest.importorskip("sb3_contrib")
        grid = ParameterGrid(branch=(0,), early_stop=(0.05, 0.3), base_depth=(0, 1, 2, 4), base=GRID.base.capped(6))
        plan = dataclasses.replace(BRIEF, algorithm=algorithm, form=form, grid=grid, looks=1, observes_draft=True)
        learner = classroom(folder, plan).learner(0, tmp_path)
        learner.run()
        controller, act = PolicyController(load_policy(tmp_path)), model_act(learner.model)
        current, chosen, steered = learner.envs.form.first, set(), 0
        for index, observation in enumerate(observations(300)):
            if index % 50 == 0:
                controller.reset()
                current, first = learner.envs.form.first, True
            seen = np.concatenate([feature_vector(observation), learner.envs.form.shown(current)])
            choice = act(seen[None], np.array([first]))[0]
            current, first = learner.envs.form.move(current, choice, seen), False
            parameters = grid.parameters(current)
            assert controller.act(observation) == parameters
            chosen.add(parameters)
            steered += 1
        assert steered == 300
        assert len(chosen) > 1, "the test would be vacuous"

    def test_the_file_tells_what_the_policy_is(self, room: TrainingSetup, tmp_path: Path) -> None:
        learner = room.learner(3, tmp_path)
        course = learner.run()
        policy = load_policy(tmp_path, GRID)
        assert policy.training["seed"] == 3
        assert policy.training["profiles"] == ["dear", "cheap"]
        assert policy.training["settings"]["config"]["hidden"] == [16]
        assert policy.observation()["names"] == [feature.name for feature in FEATURES]
        if course.best is course.looks[-1]:
            assert all((policy.weights[name] == tensor).all() for name, tensor in model_weights(learner.model).items())


class Interrupt:
    """Presses Ctrl-C after some steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, steps: int, course: TrainingHistory) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


def told(course: TrainingHistory) -> list[Evaluation]:
    return [dataclasses.replace(look, seconds=0.0) for look in course.looks]


class TestResuming:
    @pytest.mark.parametrize("algorithm", ["ppo", "recurrent_ppo"])
    def test_a_run_that_was_interrupted_ends_with_the_same_weights(
        self, folder: Path, tmp_path: Path, algorithm: Any
    ) -> None:
        if algorithm == "recurrent_ppo":
            pytest.importorskip("sb3_contrib")
        room = classroom(folder, dataclasses.replace(BRIEF, algorithm=algorithm))
        whole = room.learner(1, tmp_path / "whole")
        course = whole.run()
        for after in (2, 5, 7):  # in the first part, in the second, and in the third of a run that was gone on with
            with pytest.raises(KeyboardInterrupt):
                room.learner(1, tmp_path / "parts").run(Interrupt(after))
        parts = room.learner(1, tmp_path / "parts")
        assert 0 < parts.done < 4, "the test would be vacuous"
        assert told(parts.run()) == told(course)
        assert len(course.looks) == 4
        expected, found = model_weights(whole.model), model_weights(parts.model)
        assert all((found[name] == tensor).all() for name, tensor in expected.items())
        for name in ("policy.json", "policy.safetensors"):
            assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        again = room.learner(1, tmp_path / "whole")
        assert told(again.run()) == told(course), "what is finished is not begun again"

    def test_seeds_differ(self, room: TrainingSetup, tmp_path: Path) -> None:
        scores = [room.learner(seed, tmp_path / str(seed)).run().looks[-1].reward for seed in (0, 1)]
        assert scores[0] != scores[1]

    def test_a_checkpoint_of_another_run_is_refused(self, room: TrainingSetup, folder: Path, tmp_path: Path) -> None:
        room.learner(0, tmp_path).run()
        changed = dataclasses.replace(BRIEF, config=dataclasses.replace(BRIEF.config, entropy=0.5))
        for other, seed in ((room, 1), (classroom(folder, changed), 0)):
            with pytest.raises(ParameterError, match="belongs to a training run with other settings"):
                other.learner(seed, tmp_path)

    @pytest.mark.parametrize(
        "damage", [lambda data: data[: len(data) // 2], lambda data: data.replace(b"course", b"curse!")]
    )
    def test_a_damaged_checkpoint_is_refused(
        self, room: TrainingSetup, tmp_path: Path, damage: Callable[[bytes], bytes]
    ) -> None:
        room.learner(0, tmp_path).run()
        (tmp_path / CHECKPOINT).write_bytes(damage((tmp_path / CHECKPOINT).read_bytes()))
        with pytest.raises(ModelFileError, match=r"checkpoint.safetensors is corrupt .* Delete it"):
            room.learner(0, tmp_path)


class TestCourse:
    def look(self, steps: int, score: float) -> Evaluation:
        return Evaluation(
            steps, steps / 10, score, {"one": score}, {"one": [score, None]}, {"one": [1.0, 1.0]}, {"total": 0.0}
        )

    def test_it_is_told_as_json_and_read_again(self) -> None:
        course = TrainingHistory([self.look(1, 1.5), self.look(2, 1.2)])
        assert TrainingHistory.of(json.loads(json.dumps(course.record()))) == course

    def test_the_best_and_the_first_that_is_near_the_last(self) -> None:
        course = TrainingHistory([self.look(1, 1.0), self.look(2, 1.49), self.look(3, 1.52), self.look(4, 1.5)])
        assert (course.best.steps, course.near.steps) == (3, 2)
        assert best_seed({4: course, 5: TrainingHistory([self.look(1, 1.51)])}) == 4


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"steps": 0}, LimitError, "steps must be 1 or more; got 0"),
            ({"looks": 0}, LimitError, "looks must be 1 or more; got 0"),
            ({"algorithm": "pro"}, UnknownNameError, "Did you mean ppo"),
            ({"form": "increment"}, UnknownNameError, "Did you mean increments"),
        ],
    )
    def test_a_plan_that_cannot_be_is_refused(
        self, change: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            LearningPlan(**change)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"episodes": 0}, "config.episodes must be 1 or more; got 0"),
            ({"hidden": (8, 0)}, "config.hidden must be 1 or more; got 0"),
            ({"discount": 1.0}, "config.discount must be 0 or more and under 1; got 1.0"),
            ({"learning_rate": float("nan")}, "config.learning_rate must be over 0; got nan"),
            ({"entropy": -1.0}, "config.entropy must be 0 or more; got -1.0"),
            ({"minibatch": 100}, r"config.minibatch must divide config.episodes \* config.rounds = 8192; got 100"),
        ],
    )
    def test_settings_that_cannot_be_are_refused(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises((LimitError, ParameterError), match=message):
            LearningConfig(**change)

    def test_what_a_trace_does_not_hold_is_refused(self, folder: Path) -> None:
        for grid in (dataclasses.replace(GRID, early_stop=(0.0, 0.1)), dataclasses.replace(GRID, base_depth=(0, 11))):
            with pytest.raises(
                ParameterError, match=r"reach 0.05 and more, down to depth 10; the grid has an early_stop"
            ):
                classroom(folder, dataclasses.replace(BRIEF, grid=grid))
        with pytest.raises(ParameterError, match="of different names; got overhead_bound, overhead_bound"):
            TrainingSetup([folder / "tiny.sgt"], ["overhead_bound"] * 2, BRIEF)
        with pytest.raises(TraceError):
            TrainingSetup([folder / "none.sgt"], ["overhead_bound"], BRIEF)

    def test_what_is_not_installed_is_told(
        self, room: TrainingSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, "sb3_contrib", None)
        plan = dataclasses.replace(BRIEF, algorithm="recurrent_ppo")
        with pytest.raises(ParameterError, match=r"pip install 'specgym\[recurrent\]'"):
            Learner(room.envs, room.validation, room.names, plan, seed=0, folder=tmp_path)

"""Replays as a `VecEnv` equal those of the vector environment, and Stable-Baselines3 learns on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from specgym.agents.learning.envs import ReplayVecEnv
from specgym.env.common.errors import ParameterError
from specgym.env.gym.grid import ParameterGrid
from specgym.env.latency.families import compute_bound
from specgym.env.replay.replay_env import ReplaySpeculation
from specgym.env.replay.vector import ReplayVectorEnv
from tests.support.tiny_trace import save_tiny_trace

GRID = ParameterGrid(base_depth=(0, 2, 4), high_confidence=(0.8,), early_stop=(0.1,), deep=(False,), branch=(0,))


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_trace(tmp_path_factory.mktemp("trace") / "tiny.sgt")


def make(trace: Path, count: int = 4) -> ReplayVectorEnv:
    return ReplayVectorEnv(count, traces=trace, split=None, grid=GRID)


class TestSteps:
    def test_they_equal_the_vector_environments(self, trace: Path) -> None:
        adapted, plain = ReplayVecEnv(make(trace)), make(trace)
        adapted.seed(5)
        first, _ = plain.reset(seed=5)
        np.testing.assert_array_equal(adapted.reset(), first)
        plain.action_space.seed(0)
        ended = 0
        for _ in range(50):
            actions = plain.action_space.sample()
            seen, rewards, dones, infos = adapted.step(actions)
            expected, earned, terminated, truncated, info = plain.step(actions)
            np.testing.assert_array_equal(seen, expected)
            np.testing.assert_array_equal(rewards, earned.astype(np.float32))
            np.testing.assert_array_equal(dones, terminated | truncated)
            for index, (done, told) in enumerate(zip(dones, infos, strict=True)):
                assert ("terminal_observation" in told) == done
                if done:
                    np.testing.assert_array_equal(told["terminal_observation"], info["final_obs"][index])
                    assert told["TimeLimit.truncated"] == truncated[index]
                    assert told["episode"]["r"] == info["final_info"]["episode"]["r"][index]
                    assert told["episode"]["l"] == info["final_info"]["episode"]["l"][index]
                    ended += 1
        assert ended > 4, "the test would be vacuous"

    def test_dtypes_and_shapes_equal_those_of_the_library(self, trace: Path) -> None:
        own = DummyVecEnv([lambda: ReplaySpeculation(traces=trace, split=None, grid=GRID)])
        ours = ReplayVecEnv(make(trace, 1))
        assert (ours.observation_space, ours.action_space) == (own.observation_space, own.action_space)
        first, other = ours.reset(), own.reset()
        assert (first.shape, first.dtype) == (other.shape, other.dtype)
        for one, another in zip(ours.step(np.zeros((1, 6), int)), own.step(np.zeros((1, 6), int)), strict=True):
            assert type(one) is type(another)
            if isinstance(one, np.ndarray):
                assert (one.shape, one.dtype) == (another.shape, another.dtype)

    def test_texts_can_be_chosen_at_reset(self, trace: Path) -> None:
        envs = ReplayVecEnv(make(trace))
        envs.set_options({"texts": [1, 2, 3, 4]})
        envs.reset()
        assert [info["text"] for info in envs.reset_infos] == [1, 2, 3, 4]

    def test_the_price_of_time_can_be_set_in_three_ways(self, trace: Path) -> None:
        envs = ReplayVecEnv(make(trace))
        envs.set_lam(2.0)
        assert envs.get_attr("lam") == [2.0] * 4
        envs.env_method("set_lam", 0.5)
        assert envs.get_attr("lam") == [0.5] * 4
        envs.set_attr("lam", 0.0)
        envs.reset()
        assert envs.step(np.zeros((4, 6), int))[1].tolist() == [1.0] * 4, "a plain round's token, time for nothing"

    def test_attributes_of_a_part_of_the_episodes_are_refused(self, trace: Path) -> None:
        envs = ReplayVecEnv(make(trace))
        with pytest.raises(ParameterError, match=r"expected indices=None; got \[0\]"):
            envs.env_method("set_lam", 1.0, indices=[0])
        assert not any(envs.env_is_wrapped(VecMonitor))
        assert all(envs.env_is_wrapped(Monitor)), "its infos are a monitor's"


class TestLearning:
    def test_ppo_learns_where_trees_do_not_pay(self, trace: Path) -> None:
        """On a machine whose rows cost a plain step each, it almost stops speculating."""
        options = {"profile": compute_bound(fixed=0.0), "observes_draft": False}
        envs = ReplayVectorEnv(32, traces=trace, split=None, grid=GRID, **options)
        model = PPO("MlpPolicy", ReplayVecEnv(envs), n_steps=32, batch_size=256, seed=0, learning_rate=3e-3)
        before = self.speculating(model, envs)
        model.learn(32 * 32 * 12)
        assert before > 0.5
        assert self.speculating(model, envs) < 0.1
        assert len(model.ep_info_buffer) > 0

    def speculating(self, model: PPO, envs: ReplayVectorEnv) -> float:
        """Share of rounds with a tree."""
        seen, _ = envs.reset(seed=9)
        drafted = []
        for _ in range(40):
            actions, _ = model.predict(seen, deterministic=False)
            seen, *_, info = envs.step(actions)
            drafted.append((info["drafted"] > 0).mean())
        return float(np.mean(drafted))

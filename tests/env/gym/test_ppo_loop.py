"""A PPO loop on Gymnasium's own vector environments, as libraries of single files write it, runs unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import nn
from torch.distributions import Categorical

import specgym  # noqa: F401  # registers the environments
from tests.support.tiny_trace import save_tiny_trace

ENVS, STEPS, UPDATES = 3, 24, 3


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_trace(tmp_path_factory.mktemp("trace") / "tiny.sgt"))


def make(trace: str) -> Callable[[], gym.Env[Any, Any]]:
    def thunk() -> gym.Env[Any, Any]:
        return gym.wrappers.RecordEpisodeStatistics(gym.make("specgym/Replay-v0", traces=trace, split=None))

    return thunk


class Agent(nn.Module):
    """A network with a head for each dimension of the action, and a value."""

    def __init__(self, envs: Any) -> None:
        super().__init__()
        entries = int(np.array(envs.single_observation_space.shape).prod())
        self.sizes = envs.single_action_space.nvec.tolist()
        self.policy = nn.Sequential(nn.Linear(entries, 16), nn.Tanh(), nn.Linear(16, sum(self.sizes)))
        self.value = nn.Sequential(nn.Linear(entries, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, seen: torch.Tensor, actions: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        heads = [Categorical(logits=logits) for logits in self.policy(seen).split(self.sizes, dim=1)]
        if actions is None:
            actions = torch.stack([head.sample() for head in heads], dim=1)
        log_prob = torch.stack([head.log_prob(action) for head, action in zip(heads, actions.T, strict=True)]).sum(0)
        return actions, log_prob, self.value(seen).flatten()


def train(envs: Any) -> tuple[list[float], list[float]]:
    """Returns the returns of episodes that ended, and the losses of the updates."""
    torch.manual_seed(0)
    agent = Agent(envs)
    optimizer = torch.optim.Adam(agent.parameters(), 1e-3)
    seen, _ = envs.reset(seed=1)
    returns, losses = [], []
    for _ in range(UPDATES):
        rows = []
        for _ in range(STEPS):
            with torch.no_grad():
                actions, log_prob, value = agent(torch.tensor(seen))
            before = torch.tensor(seen)
            seen, reward, terminated, truncated, infos = envs.step(actions.numpy())
            rows.append((before, actions, log_prob, torch.tensor(reward, dtype=torch.float32) - value))
            episodes = infos.get("final_info", infos)
            if "episode" in episodes:
                ended = episodes["_episode"]
                assert np.array_equal(ended, terminated | truncated)
                returns += episodes["episode"]["r"][ended].tolist()
                assert (episodes["episode"]["l"][ended] > 0).all()
        before, actions, log_prob, advantage = (torch.cat(column) for column in zip(*rows, strict=True))
        _, new, value = agent(before, actions)
        ratio = (new - log_prob).exp()
        loss = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean() + (value**2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return returns, losses


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("form", ["sync", "vector"])
def test_it_runs_and_reads_the_ends_of_episodes(trace: str, form: str, mode: AutoresetMode) -> None:
    if form == "sync":
        envs: Any = gym.vector.SyncVectorEnv([make(trace)] * ENVS, autoreset_mode=mode)
    else:
        envs = gym.make_vec("specgym/Replay-v0", num_envs=ENVS, traces=trace, split=None, autoreset_mode=mode)
        if mode is AutoresetMode.NEXT_STEP:
            envs = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    returns, losses = train(envs)
    assert len(returns) > ENVS, "the test would be vacuous"
    assert np.isfinite(returns).all()
    assert np.isfinite(losses).all()

"""Live environments in other processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import gymnasium as gym
import torch
import specgym
from specgym.env.decoding.live import LiveDecoder
from specgym.env.tree.rounds import Request
from tests.support.tiny_models import causal_draft, make_prompt, tiny_target

def work():  # as much as many threads share
    return float(torch.rand(2_000_000).sin().sum())

def decoder():
    work()
    target = tiny_target()
    return LiveDecoder(target, causal_draft(target))

def make():
    requests = [Request(make_prompt(seed, 12), 20) for seed in range(2)]
    return gym.make("specgym/Live-v0", decoder=decoder, requests=requests, plain_step_seconds=0.01)

if __name__ == "__main__":
    torch.set_num_threads(2)
    work()
    ready = make()
    for makes in ([make, make], [lambda: ready, lambda: ready]):
        envs = gym.vector.AsyncVectorEnv(makes, context=CONTEXT)
        envs.reset(seed=0)
        assert envs.step(envs.action_space.sample())[4]["tokens"].min() > 0
        envs.close()
    print("played", torch.get_num_threads())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not fork")
def test_processes_that_are_forked_beside_threads_do_not_wait_for_ever() -> None:
    script = SCRIPT.replace("CONTEXT", "'fork'")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "played 2\n"), done.stderr

"""flashspec: chains of a model, of prompt lookup, and a bandit over both. It has no plain decoding of its own."""

from __future__ import annotations

import functools
from typing import Any

import torch
from flashspec import BanditConfig, FlashSpecConfig, SamplingConfig, SpeculativeEngine
from flashspec.bandit import UCB1Selector
from flashspec.engine import HuggingFaceDrafter, NgramDrafter, TargetModel

from specgym.controllers.evaluation.peers.libraries.transformers_peers import load_model
from specgym.controllers.evaluation.peers.messages import Answer, OpenPeer, Setup, Task, cut_at_end, timed


def open_peer(name: str, setup: Setup) -> OpenPeer:
    """Loads one of flashspec's peers.

    Raises:
        ValueError: sampling among the likeliest tokens only, which flashspec's lossless variants ignore.
    """
    if setup.temperature > 0 and (setup.top_k or setup.top_p < 1):
        raise ValueError("flashspec samples from all tokens only, and ignores top_k and top_p")
    torch.set_num_threads(setup.threads)
    drafters: list[Any] = [] if name == "flashspec-lookup" else [_assistant(setup)]
    if name != "flashspec-assisted":
        drafters.append(NgramDrafter())
    return _FlashSpec(_config(name, setup, len(drafters)), drafters, setup)


def _config(name: str, setup: Setup, arms: int) -> Any:
    chosen = {} if name == "flashspec-assisted" else {"bandit": BanditConfig(n_arms=arms), "drafter_strategy": "bandit"}
    return FlashSpecConfig(
        device="cpu",
        dtype=setup.dtype,
        eos_token_ids=tuple(setup.end_tokens),
        sampling=SamplingConfig(temperature=setup.temperature, seed=None),  # seeded by task
        **chosen,
    )


class _FlashSpec:
    """One engine; its bandit goes on learning from text to text."""

    def __init__(self, config: Any, drafters: list[Any], setup: Setup) -> None:
        bandit = UCB1Selector(n_arms=len(drafters)) if len(drafters) > 1 else None
        self.engine = SpeculativeEngine(config, drafters, _target(setup.target, setup.dtype), bandit)
        self.setup = setup

    def __call__(self, task: Task) -> Answer:
        torch.manual_seed(task.seed)
        prompt = torch.tensor([task.prompt])
        with timed() as watch:
            result = self.engine.generate(prompt, max_new_tokens=task.max_new_tokens)
            tokens = result.output_ids[0, : result.n_tokens_generated].tolist()
        return Answer(
            cut_at_end(tokens, self.setup.end_tokens, task.max_new_tokens),
            watch.seconds,
            rounds=len(result.arm_steps),
            drafted=sum(step.proposed for step in result.arm_steps),
            accepted=sum(step.accepted for step in result.arm_steps),
        )


@functools.cache
def _target(folder: str, dtype: str) -> Any:
    return TargetModel(folder, torch.device("cpu"), getattr(torch, dtype), model=load_model(folder, dtype))


def _assistant(setup: Setup) -> Any:
    assert setup.assistant is not None
    model = load_model(setup.assistant, setup.dtype)
    heat = setup.temperature
    return HuggingFaceDrafter(setup.assistant, "cpu", getattr(torch, setup.dtype), temperature=heat, model=model)

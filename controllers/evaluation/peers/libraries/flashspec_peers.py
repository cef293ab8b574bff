"""flashspec: chains of a model, of prompt lookup, and a bandit over both. It has no plain decoding of its own."""

from __future__ import annotations

import functools
from time import perf_counter
from typing import Any

import torch
from flashspec import BanditConfig, FlashSpecConfig, SamplingConfig, SpeculativeEngine
from flashspec.bandit import UCB1Selector
from flashspec.engine import HuggingFaceDrafter, NgramDrafter, TargetModel

from specgym.controllers.evaluation.peers.catalogue import Answer, OpenPeer, Setup, Task
from specgym.controllers.evaluation.peers.libraries.transformers_peers import load_model


def open_peer(name: str, setup: Setup) -> OpenPeer:
    """Loads one of flashspec's peers. A bandit keeps learning from text to text.

    Raises:
        ValueError: sampling with top-k or top-p, which flashspec's lossless variants ignore.
    """
    if setup.temperature > 0 and (setup.top_k or setup.top_p < 1):
        raise ValueError("flashspec samples from all tokens only, and ignores top_k and top_p")
    torch.set_num_threads(setup.threads)
    drafters: list[Any] = [] if name == "flashspec-lookup" else [_assistant(setup)]
    if name != "flashspec-assisted":
        drafters.append(NgramDrafter())
    arms = len(drafters)
    chosen = {} if name == "flashspec-assisted" else {"bandit": BanditConfig(n_arms=arms), "drafter_strategy": "bandit"}
    config = FlashSpecConfig(
        device="cpu",
        dtype=setup.dtype,
        eos_token_ids=tuple(setup.end_tokens),
        sampling=SamplingConfig(temperature=setup.temperature, seed=None),  # seeded by task
        **chosen,
    )
    bandit = UCB1Selector(n_arms=arms) if arms > 1 else None
    return functools.partial(_generate, SpeculativeEngine(config, drafters, _target(setup.target, setup.dtype), bandit))


def _generate(engine: Any, task: Task) -> Answer:
    torch.manual_seed(task.seed)
    prompt = torch.tensor([task.prompt])
    before = perf_counter()
    result = engine.generate(prompt, max_new_tokens=task.max_new_tokens)
    tokens = result.output_ids[0, : result.n_tokens_generated].tolist()
    return Answer(
        tokens,
        perf_counter() - before,
        rounds=len(result.arm_steps),
        drafted=sum(step.proposed for step in result.arm_steps),
        accepted=sum(step.accepted for step in result.arm_steps),
    )


@functools.cache
def _target(folder: str, dtype: str) -> Any:
    return TargetModel(folder, torch.device("cpu"), getattr(torch, dtype), model=load_model(folder, dtype))


def _assistant(setup: Setup) -> Any:
    assert setup.assistant is not None
    model, dtype = load_model(setup.assistant, setup.dtype), getattr(torch, setup.dtype)
    return HuggingFaceDrafter(setup.assistant, "cpu", dtype, temperature=setup.temperature, model=model)

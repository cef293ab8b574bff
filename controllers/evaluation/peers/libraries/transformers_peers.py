"""transformers' own ways of decoding: plain, compiled, assisted by a small model, and with prompt lookup."""

from __future__ import annotations

import functools
from time import perf_counter
from typing import Any

import torch
from transformers import AutoModelForCausalLM, CompileConfig, GenerationConfig, PreTrainedModel, StaticCache

from specgym.controllers.evaluation.peers.catalogue import Answer, OpenPeer, Setup, Task

_LOOKUP_TOKENS = 10


@functools.cache
def load_model(folder: str, dtype: str, purpose: str = "") -> PreTrainedModel:
    """Loads a causal language model, once for each `purpose`.

    It has no generation settings of its own, such as penalties: only a run's settings count.
    """
    options = {"local_files_only": True, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **options).eval()
    model.generation_config = GenerationConfig()
    return model


def open_peer(name: str, setup: Setup) -> OpenPeer:
    """Loads one of transformers' peers."""
    torch.set_num_threads(setup.threads)
    if name == "transformers-compiled":
        return _compiled(load_model(setup.target, setup.dtype, "compiled"), setup)
    options: dict[str, Any] = {}
    if name == "transformers-assisted":
        assert setup.assistant is not None
        options["assistant_model"] = assistant = load_model(setup.assistant, setup.dtype)
        assistant.generation_config.num_assistant_tokens_schedule = "heuristic"
    if name == "transformers-lookup":
        options["prompt_lookup_num_tokens"] = _LOOKUP_TOKENS
    return functools.partial(_counted, load_model(setup.target, setup.dtype), setup, options)


def _counted(model: PreTrainedModel, setup: Setup, options: dict[str, Any], task: Task) -> Answer:
    """Generates with `options`, and counts the target's forwards and their rows."""
    rows: list[int] = []  # of each forward

    def count(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows.append(int((kwargs["input_ids"] if "input_ids" in kwargs else args[0]).shape[1]))

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        tokens, seconds = _generate(model, setup, options, task)
    finally:
        hook.remove()
    # Every forward after the prompt's reads one committed token, and the draft.
    drafted = sum(rows) - len(task.prompt) - (len(rows) - 1)
    accepted = min(max(len(tokens) - len(rows), 0), drafted)
    return Answer(tokens, seconds, len(rows), drafted, accepted)


def _compiled(model: PreTrainedModel, setup: Setup) -> OpenPeer:
    """Returns `generate` with compiled decoding steps.

    Its static cache has the size of the run's longest text, so that a longer text compiles nothing anew.
    """
    import torch._inductor.config  # noqa: PLC0415 - slow, and the other peers do without

    torch._inductor.config.freezing = True
    cache = StaticCache(config=model.config, max_cache_len=setup.room)
    config = CompileConfig(mode="default")  # the CUDA graphs of other modes are of no use on a CPU
    config._compile_all_devices = True  # else `generate` compiles on accelerators only

    def run(task: Task) -> Answer:
        cache.reset()
        tokens, seconds = _generate(model, setup, {"compile_config": config, "past_key_values": cache}, task)
        return Answer(tokens, seconds, rounds=len(tokens))

    return run


def _generate(model: PreTrainedModel, setup: Setup, options: dict[str, Any], task: Task) -> tuple[list[int], float]:
    """Returns the generated tokens, and the time that they took [s]."""
    sampling: dict[str, Any] = {"do_sample": False}
    if setup.temperature > 0:
        torch.manual_seed(task.seed)
        sampling = {name: getattr(setup, name) for name in ("temperature", "top_k", "top_p")} | {"do_sample": True}
    prompt = torch.tensor([task.prompt])
    before = perf_counter()
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=task.max_new_tokens,
        eos_token_id=setup.end_tokens or None,
        pad_token_id=0,
        **sampling,
        **options,
    )
    tokens = output[0, len(task.prompt) :].tolist()
    return tokens, perf_counter() - before

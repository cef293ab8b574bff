"""transformers' own ways of decoding: plain, compiled, assisted by a small model, and with prompt lookup."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, CompileConfig, PreTrainedModel, StaticCache

from specgym.controllers.evaluation.peers.messages import Answer, OpenPeer, Setup, Task, cut_at_end, timed

_LOOKUP_TOKENS = 10


@functools.cache
def load_model(folder: str, dtype: str, purpose: str = "") -> PreTrainedModel:
    """A causal language model, loaded once for each `purpose`."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True).eval()


def open_peer(name: str, setup: Setup) -> OpenPeer:
    """Loads one of transformers' peers."""
    torch.set_num_threads(setup.threads)
    if name == "transformers-compiled":
        return _Compiled(load_model(setup.target, setup.dtype, "compiled"), setup)
    options: dict[str, Any] = {}
    if name == "transformers-assisted":
        assert setup.assistant is not None
        options["assistant_model"] = assistant = load_model(setup.assistant, setup.dtype)
        assistant.generation_config.num_assistant_tokens_schedule = "heuristic"
    if name == "transformers-lookup":
        options["prompt_lookup_num_tokens"] = _LOOKUP_TOKENS
    return _Generate(load_model(setup.target, setup.dtype), setup, options)


@dataclass
class _Forwards:
    """The forwards of a model, and the rows of all of them together."""

    count: int = 0
    rows: int = 0

    def take(self, module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        self.count += 1
        self.rows += int(tokens.shape[1])


@contextlib.contextmanager
def _counted(model: PreTrainedModel) -> Iterator[_Forwards]:
    forwards = _Forwards()
    hook = model.register_forward_pre_hook(forwards.take, with_kwargs=True)
    try:
        yield forwards
    finally:
        hook.remove()


class _Generate:
    """`generate` with some options."""

    def __init__(self, model: PreTrainedModel, setup: Setup, options: dict[str, Any]) -> None:
        self.model, self.setup, self.options = model, setup, options

    def __call__(self, task: Task) -> Answer:
        with _counted(self.model) as forwards:
            tokens, seconds = _generate(self.model, self.setup, task, self.options)
        # Every later forward reads one committed token, and what was drafted.
        drafted = forwards.rows - len(task.prompt) - (forwards.count - 1)
        accepted = min(max(len(tokens) - forwards.count, 0), drafted)
        return Answer(tokens, seconds, forwards.count, drafted, accepted)


class _Compiled:
    """`generate` whose decoding steps are compiled.

    Its static cache has the size of the run's longest text, so that nothing is compiled anew for a longer one.
    """

    def __init__(self, model: PreTrainedModel, setup: Setup) -> None:
        import torch._inductor.config  # noqa: PLC0415 - slow, and of no use to the others

        torch._inductor.config.freezing = True
        self.model, self.setup = model, setup
        self.cache = StaticCache(config=model.config, max_cache_len=setup.room)
        compiled = CompileConfig(mode="default")  # the default mode's CUDA graphs are of no use on a CPU
        compiled._compile_all_devices = True  # else `generate` compiles on accelerators only
        self.options = {"compile_config": compiled, "past_key_values": self.cache}

    def __call__(self, task: Task) -> Answer:
        self.cache.reset()
        tokens, seconds = _generate(self.model, self.setup, task, self.options)
        return Answer(tokens, seconds, rounds=len(tokens))


def _generate(model: PreTrainedModel, setup: Setup, task: Task, options: dict[str, Any]) -> tuple[list[int], float]:
    """The generated tokens, and the time they took [s]."""
    sampling: dict[str, Any] = {"do_sample": False}
    if setup.temperature > 0:
        torch.manual_seed(task.seed)
        sampling = {
            "do_sample": True,
            "temperature": setup.temperature,
            "top_k": setup.top_k,
            "top_p": setup.top_p,
        }
    prompt = torch.tensor([task.prompt])
    with timed() as watch:
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
    return cut_at_end(tokens, setup.end_tokens, task.max_new_tokens), watch.seconds

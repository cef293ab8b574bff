"""A model object is left as it was found: between rounds, after an error, and where threads share it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from specgym.controllers.custom_generate import speculative_generate
from specgym.env.models.target import TargetModel
from tests.support.tiny_models import feature_draft, noisy_copy, tiny_llama

PROMPT = torch.tensor([[5, 6, 7, 8, 5, 6]])
PADDED = torch.tensor([[0, 0, 0, 5, 6, 7], [5, 6, 7, 8, 5, 6]])


def hooked_llama() -> PreTrainedModel:
    """A Llama that goes by transformers' own forward."""
    model = tiny_llama(dtype=torch.float32)
    model.model.layers[0].register_forward_hook(lambda *_: None)
    return model


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {"vocab_size": 31, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=1, eos_token_id=None)).eval()


MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tiny_llama(dtype=torch.float32),
    "llama with a hook": hooked_llama,
    "gpt2": gpt2,
}
every_model = pytest.mark.parametrize("kind", MODELS)


def state(model: Any) -> list[object]:
    hooks = [(list(module._forward_hooks), list(module._forward_pre_hooks)) for module in model.modules()]
    return [model.config._attn_implementation, [module.training for module in model.modules()], hooks]


def text(model: Any, **options: Any) -> list[int]:
    settings = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    return model.generate(PROMPT, **(settings | options))[0].tolist()  # type: ignore[no-any-return]


def ours(model: Any, **options: Any) -> list[int]:
    return text(model, custom_generate=speculative_generate, controller="fixed_tree", **options)


def padded(model: Any) -> list[list[int]]:
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "attention_mask": (PADDED > 0).long()}
    return model.generate(PADDED, **options).tolist()  # type: ignore[no-any-return]


@every_model
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("training", ["all", "none", "one part"])
def test_it_is_as_it_was_between_rounds_and_afterwards(kind: str, attention: str, training: str) -> None:
    model, right = MODELS[kind](), text(MODELS[kind]())
    model.set_attn_implementation(attention)
    draft = noisy_copy(model)
    model.train(training == "all")
    draft.train()
    if training == "one part":
        next(model.get_decoder().children()).train()
    before, drafts, between = state(model), state(draft), []

    def look(tokens: Sequence[int]) -> None:
        between.append((state(model), state(draft)))

    assert ours(model, draft=draft, on_tokens=look) == right
    assert all(found == (before, drafts) for found in between)
    assert (state(model), state(draft)) == (before, drafts)


@every_model
def test_it_is_as_it_was_after_an_error(kind: str) -> None:
    model = MODELS[kind]().train()
    before = state(model)
    with pytest.raises(ZeroDivisionError):
        ours(model, on_tokens=lambda tokens: 1 // 0)
    own = model.get_output_embeddings().forward
    model.get_output_embeddings().forward = lambda x: own(x) / 0 if len(x[0]) > 1 else 1 // 0
    with pytest.raises((ZeroDivisionError, ValueError)):
        ours(model)
    assert state(model) == before


@every_model
def test_a_padded_batch_between_two_rounds_is_right(kind: str) -> None:
    model = MODELS[kind]()
    right, batch, made = text(model), padded(model), []
    assert ours(model, on_tokens=lambda tokens: made.append(padded(model))) == right
    assert made == [batch] * len(made) != []


@every_model
def test_threads_share_a_model(kind: str) -> None:
    model = MODELS[kind]()
    before, right, batch = state(model), text(model), padded(model)
    made: list[object] = []

    def repeat(call: Callable[[], object], expected: object) -> None:
        made.extend(call() == expected for _ in range(4))

    calls = [(lambda: ours(model), right)] * 2 + [
        (lambda: ours(model, draft=model), right),
        (lambda: padded(model), batch),
    ]
    threads = [threading.Thread(target=repeat, args=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert made == [True] * 16
    assert state(model) == before


def test_hidden_states_are_those_of_the_own_thread() -> None:
    model = hooked_llama()
    target, other = TargetModel(model), TargetModel(model)
    draft = feature_draft(target)
    right = ours(model, draft=draft)
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            other.start()
            other.show_features(())
            other.extend([9, 8, 7])

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(3):
            rounds: list[Sequence[int]] = []
            assert ours(model, draft=draft, on_tokens=rounds.append) == right
    finally:
        stop.set()
        thread.join(60)

"""Settings that come with a target: requests follow them as `generate` does, or say which they leave out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from specgym.env.decoding.own_settings import own_request, warn_of_own_settings
from specgym.env.models.target import TargetModel
from specgym.env.tree.sampling import SamplingSettings
from tests.support.tiny_models import causal_draft, generate, make_prompt, tiny_llama

END, TOKENS = 4, 40
PROMPT = make_prompt(2, 10)
TREE = "fixed_tree:branch=2:depth=4"


@pytest.fixture(autouse=True)
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def owning(**settings: Any) -> PreTrainedModel:
    """A model that comes with these settings."""
    model = tiny_llama(3, torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=0, **settings)
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.2},
        {"no_repeat_ngram_size": 2, "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8},
        {"min_length": 45},
        {"min_new_tokens": 32, "bad_words_ids": [[17]]},
        {"suppress_tokens": [30], "begin_suppress_tokens": [15, 9], "encoder_repetition_penalty": 1.3},
        {"forced_bos_token_id": 0, "forced_eos_token_id": 0, "exponential_decay_length_penalty": (20, 1.1)},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_greedy_request_gives_the_text_of_generate(settings: dict[str, Any]) -> None:
    model = owning(**settings)
    prompt = torch.tensor([PROMPT])
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": TOKENS, "do_sample": False}
    theirs = model.generate(prompt, **options, temperature=1.0, top_k=50, top_p=1.0)[0, len(PROMPT) :].tolist()
    model.generation_config = GenerationConfig(**settings, eos_token_id=END)
    target = TargetModel(model)
    request = own_request(target, PROMPT, TOKENS, SamplingSettings())
    made = generate(target, causal_draft(target), request, TREE)
    assert made.tokens == theirs
    assert made.accepted
    bare = TargetModel(owning())
    assert own_request(bare, PROMPT, TOKENS, SamplingSettings()).processors is None
    if "forced_bos_token_id" not in settings:
        plain = generate(bare, causal_draft(bare), own_request(bare, PROMPT, TOKENS, SamplingSettings()))
        assert plain.tokens != theirs, "the test would be vacuous"


def test_a_sampled_request_has_the_processors_of_generate_in_its_order() -> None:
    model = owning(repetition_penalty=1.1, min_p=0.05, typical_p=0.9, renormalize_logits=True)
    request = own_request(TargetModel(model), PROMPT, TOKENS, SamplingSettings(0.7, 12, 0.9, seed=5))
    assert request.sampling == SamplingSettings(1.0, seed=5)
    assert [type(processor).__name__ for processor in request.processors or ()] == [
        "RepetitionPenaltyLogitsProcessor",
        *(f"{name}LogitsWarper" for name in ("Temperature", "TopK", "TopP", "MinP", "Typical")),
        "LogitNormalization",
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9},
        {"repetition_penalty": 1.0, "min_length": 0, "no_repeat_ngram_size": 0, "num_beams": 1},
        {"typical_p": 1.0, "cache_implementation": "static", "num_assistant_tokens": 7, "max_length": 30},
    ],
    ids=str,
)
@pytest.mark.parametrize("sampling", [SamplingSettings(), SamplingSettings(0.8, 7, 0.9, 1)], ids=["greedy", "sampled"])
def test_settings_that_ask_for_nothing_leave_a_request_plain(
    settings: dict[str, Any], sampling: SamplingSettings
) -> None:
    request = own_request(TargetModel(owning(**settings)), PROMPT, TOKENS, sampling)
    assert request.processors is None
    assert request.sampling == sampling


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"penalty_alpha": 0.6, "top_k": 4}, {"stop_strings": ["a"]}])
def test_a_setting_that_no_request_follows_is_named(settings: dict[str, Any]) -> None:
    target = TargetModel(owning(**settings))
    with pytest.warns(UserWarning, match=next(iter(settings))):
        assert own_request(target, PROMPT, TOKENS, SamplingSettings()).processors is None


def test_uses_that_follow_none_name_all() -> None:
    with pytest.warns(UserWarning, match=r"repetition_penalty=1.2, num_beams=2"):
        warn_of_own_settings(TargetModel(owning(repetition_penalty=1.2, num_beams=2)))


def test_making_a_request_draws_no_random_numbers() -> None:
    target = TargetModel(owning(repetition_penalty=1.2))
    state = torch.get_rng_state()
    own_request(target, PROMPT, TOKENS, SamplingSettings(0.7))
    assert torch.equal(state, torch.get_rng_state())

"""docs/architectures.md says what holds. All of it is tried by `make architectures`, and some of it here."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

import specgym
from specgym.env.common.errors import LimitError
from specgym.env.models.hub.compatibility import TESTED_TYPES
from specgym.env.models.hub.context import has_window
from tests.support.architectures import LENGTH, PROMPT, WINDOW, kinds, stated, tiny_config, tiny_model, verdict
from tests.support.tiny_models import noisy_copy

# Windows, chunks, masks of their own, sinks, soft caps, shared keys and values, other heads, and two that are refused.
TRIED = ["gemma2", "gemma3_text", "mistral", "cohere2", "olmo3", "exaone4", "phi3", "qwen2", "modernbert-decoder"]
TRIED += ["llama4_text", "gpt_neo", "gpt_oss", "granite_swa", "vaultgemma", "flint", "gemma3n_text", "gemma4_text"]
TRIED += ["deepseek_v3", "xglm", "falcon", "bart", "bloom"]


@pytest.mark.parametrize("name", TRIED)
def test_an_architecture_does_what_the_page_says(name: str) -> None:
    assert verdict(kinds()[name]) == stated()[name]


def test_the_page_names_all_causal_language_models_and_none_that_differs() -> None:
    assert set(stated()) == set(kinds())
    assert all(text.startswith(("works", "refused: ", "not tried: ")) for text in stated().values())


def test_the_types_that_need_no_trial_are_those_that_the_page_says_to_work() -> None:
    assert {name for name, text in stated().items() if text.startswith("works")} == TESTED_TYPES


def test_windows_are_shorter_than_the_texts_of_the_page() -> None:
    windowed = [name for name in TRIED if stated()[name].endswith("windows included")]
    assert len(windowed) > 10, "the test would be vacuous"
    for name in windowed:
        assert has_window(tiny_config(kinds()[name]))
    assert len(PROMPT) > 2 * WINDOW


def test_a_page_row_would_show_a_window_that_is_left_out() -> None:
    model = tiny_model(kinds()["mistral"])
    wide = copy.deepcopy(model)
    wide.config.sliding_window = 16 * WINDOW
    alone = [part.generate(torch.tensor([PROMPT]), max_new_tokens=LENGTH, do_sample=False) for part in (model, wide)]
    assert not torch.equal(*alone)


@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic", "llama3", "longrope"])
@pytest.mark.parametrize("before", [20, 60])
def test_a_scaled_rotation_is_exact_past_its_original_length(kind: str, before: int) -> None:
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 32, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    longest = 32 if kind == "dynamic" else 128
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=longest, rope_parameters=rope, initializer_range=0.3, eos_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    prompt = torch.tensor([(PROMPT * 3)[:before]])
    settings = {"max_new_tokens": LENGTH, "do_sample": False, "pad_token_id": 0}
    rounds: list[object] = []
    hand = {"custom_generate": specgym.generate, "draft": noisy_copy(model, 0.02), "controller": "fixed_tree"}
    expected = model.generate(prompt, **settings)
    if (kind, before) == ("dynamic", 60):  # the angles depend on what the model has read before
        with pytest.raises(LimitError, match="at most 31 exactly"):
            model.generate(prompt, **settings, **hand)
        return
    assert torch.equal(model.generate(prompt, **settings, **hand, on_tokens=rounds.append), expected)
    assert len(rounds) < LENGTH, "the test would be vacuous"

"""Models of text and images continue text as they would by themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PretrainedConfig

import specgym
from specgym.env.common.errors import PairError
from tests.support.architectures import LENGTH, PROMPT, tiny_config
from tests.support.tiny_models import noisy_copy

KINDS: dict[str, type[PretrainedConfig]] = {kind.model_type: kind for kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING}
SECTIONS = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}


def tiny_model(name: str) -> Any:
    config = tiny_config(KINDS[name])
    if name.startswith("qwen2"):  # its rotation has parts for time, height and width
        config.get_text_config().rope_parameters = SECTIONS
    torch.manual_seed(0)
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[KINDS[name]](config).float().eval()
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mistral3", "internvl"])
def test_text_alone_is_continued_as_by_the_model(name: str) -> None:
    model, prompt = tiny_model(name), torch.tensor([PROMPT])
    settings = {"max_new_tokens": LENGTH, "do_sample": False, "pad_token_id": 0, "use_cache": True}
    before = {config._attn_implementation for config in (model.config, model.config.get_text_config())}
    expected = model.generate(prompt, **settings)
    for draft in ("lookup", noisy_copy(model, 0.02)):
        rounds: list[Any] = []
        hand = {"custom_generate": specgym.generate, "draft": draft, "controller": "fixed_tree"}
        assert torch.equal(model.generate(prompt, **settings, **hand, on_tokens=rounds.append), expected)
    assert len(rounds) < LENGTH, "the test would be vacuous"
    assert {config._attn_implementation for config in (model.config, model.config.get_text_config())} == before


def test_a_model_whose_prompt_sees_its_own_future_is_refused() -> None:
    model = tiny_model("paligemma")
    with pytest.raises(PairError, match=r"PaliGemma.* cannot work here: it reads branches of a tree otherwise"):
        model.generate(torch.tensor([PROMPT]), max_new_tokens=4, custom_generate=specgym.generate)

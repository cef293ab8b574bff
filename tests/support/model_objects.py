"""Model objects that our compiled functions support, and their texts by transformers and by us."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from specgym.controllers.custom_generate import speculative_generate

SHAPE: dict[str, Any] = {
    "vocab_size": 120,  # no multiple of 16
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,  # so that projections are square
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
}
PROMPT = torch.tensor([[5, 6, 7, 8, 5, 6, 7]])
FLOAT, HALF, CPU = torch.float32, torch.bfloat16, torch.device("cpu")


def build(dtype: torch.dtype = FLOAT, qwen: bool = False) -> Any:
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE)) if qwen else LlamaForCausalLM(LlamaConfig(**SHAPE))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "bias" in name:
                weight.normal_()
    return model.to(dtype).eval()


def text(model: PreTrainedModel, **options: Any) -> list[int]:
    settings = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    return model.generate(PROMPT, **(settings | options))[0].tolist()  # type: ignore[no-any-return, operator]


def ours(model: PreTrainedModel, controller: str = "fixed_tree") -> list[int]:
    return text(model, custom_generate=speculative_generate, controller=controller)

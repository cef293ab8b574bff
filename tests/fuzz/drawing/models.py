"""Tiny random models of many families, and drafts for them that are sometimes right."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from specgym.env.drafts import CausalDraft, Draft, FeatureDraft, LookupDraft
from specgym.env.models.target import CachedModel
from tests.support.tiny_models import noisy_copy, tiny_network

DRAFTS = {"lookup": 3, "causal": 6, "causal object": 2, "feature": 2, "itself": 1}
"""kinds of draft, with their weights"""


@dataclass(frozen=True)
class Family:
    """How to make a tiny model of one architecture."""

    config: str
    """its configuration's class in transformers"""
    changes: dict[str, Any] = field(default_factory=dict)
    """what differs from the usual fields; None leaves a field out"""
    weight: int = 1
    """how often the family is drawn, relative to others"""
    cut: bool = False
    """whether positions are a table, which ends at the context"""
    changes_beyond: bool = False
    """whether positions change beyond the context, so that keys in a cache are not those of a forward without one"""
    single: bool = False
    """whether transformers computes it in float32, but not in float64"""


_GPT2 = {
    "hidden_size": None,
    "num_hidden_layers": None,
    "num_attention_heads": None,
    "num_key_value_heads": None,
    "intermediate_size": None,
    "max_position_embeddings": None,
    "n_layer": 2,
}
_LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12}
_GPT_NEO = {
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads")),
    "num_layers": 2,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 6,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_DROPOUTS = (
    *("dropout", "attention_dropout", "hidden_dropout", "resid_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"),
    *("activation_dropout", "embed_dropout", "layerdrop"),
)
FULL = {
    "llama": Family("LlamaConfig", weight=6),
    "llama with biases": Family("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral": Family("MistralConfig", {"sliding_window": None}, 2),
    "qwen2": Family("Qwen2Config", {"use_sliding_window": False}, 4),
    "qwen3": Family("Qwen3Config", {"head_dim": 8}, 4),
    "gemma": Family("GemmaConfig", {"head_dim": 8}, 2),
    "gpt_neox": Family("GPTNeoXConfig", {"num_key_value_heads": None}),
    "gpt2": Family("GPT2Config", _GPT2, cut=True),
    "gptj": Family("GPTJConfig", _GPT2 | {"rotary_dim": 8}, cut=True),
    "phi": Family("PhiConfig"),
    "phi3": Family("Phi3Config"),
    "olmo2": Family("Olmo2Config"),
    "granite": Family("GraniteConfig", {"residual_multiplier": 0.7, "logits_scaling": 1.5}),
    "cohere": Family("CohereConfig"),
    "stablelm": Family("StableLmConfig"),
    "starcoder2": Family("Starcoder2Config", {"sliding_window": None}),
    "opt": Family("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": None, "num_key_value_heads": None}, cut=True),
    "deepseek_v2": Family("DeepseekV2Config", {"num_key_value_heads": 4, "first_k_dense_replace": 3, **_LATENT}),
    "mixtral": Family("MixtralConfig", {"num_local_experts": 4, "sliding_window": None}, single=True),
    "qwen3_moe": Family("Qwen3MoeConfig", {"head_dim": 8, "num_experts": 4, **_EXPERTS}, single=True),
}
"""architectures with full attention, by name"""
_WINDOW = {"sliding_window": 6}
_LATER_WINDOW = {"use_sliding_window": True, "max_window_layers": 1, **_WINDOW}
_HALF = {"layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2, **_WINDOW}
_CHUNKS = {"attention_chunk_size": 6, "num_local_experts": 2, "intermediate_size_mlp": 48}
WINDOWED = {
    "mistral, window": Family("MistralConfig", _WINDOW, 3),
    "qwen2, window": Family("Qwen2Config", _LATER_WINDOW, 2),
    "qwen3, window": Family("Qwen3Config", {"head_dim": 8, **_LATER_WINDOW}),
    "phi3, window": Family("Phi3Config", _WINDOW),
    "starcoder2, window": Family("Starcoder2Config", _WINDOW),
    "gemma2": Family(
        "Gemma2Config", {"head_dim": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0, **_WINDOW}, 2
    ),
    "gemma3_text": Family("Gemma3TextConfig", {"head_dim": 8, **_HALF}, 2),
    "olmo3": Family("Olmo3Config", _HALF),
    "cohere2": Family("Cohere2Config", _HALF),
    "exaone4": Family("Exaone4Config", _HALF),
    "gpt_oss": Family("GptOssConfig", {"head_dim": 8, "num_local_experts": 4, **_WINDOW}, 2, single=True),
    "gpt_neo": Family("GPTNeoConfig", _GPT_NEO, cut=True),
    "llama4_text": Family(
        "Llama4TextConfig",
        {"head_dim": 8, **_CHUNKS},
        single=True,
    ),
}
"""architectures with windows, chunks, soft caps and sinks, by name"""
SCALED = {
    f"llama, {name}": Family(
        "LlamaConfig",
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": name, **settings}},
        changes_beyond=name == "dynamic",
    )
    for name, settings in {
        "linear": {"factor": 2.0},
        "dynamic": {"factor": 2.0},
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
        "llama3": {
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    }.items()
}
"""Llamas with scaled positions, by name"""
FAMILIES = FULL | WINDOWED | SCALED
"""all architectures, by name"""


def make_target(family: Family, dtype: str, seed: int) -> PreTrainedModel:
    """Makes a model of random weights. Biases and norms are random too, or mistakes in them would not show."""
    random = Random(f"{seed} model")
    heads, groups = random.choice(((4, 2), (4, 1), (4, 4), (2, 1), (6, 3)))
    if "num_key_value_heads" in family.changes:
        heads = 4
    hidden = 8 * heads * random.choice((1, 2)) if "head_dim" in family.changes else heads * random.choice((8, 16))
    context = random.choice((48, 64, 200))
    shape = {
        "vocab_size": random.randint(64, 128),
        "hidden_size": hidden,
        "intermediate_size": 48,
        "num_hidden_layers": random.choice((1, 2, 2, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": context,
        "initializer_range": random.choice((0.2, 0.3)),
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        **dict.fromkeys(_DROPOUTS, 0.0),
    } | family.changes
    if "n_layer" in shape:
        shape |= {"n_embd": hidden, "n_head": heads, "n_positions": context}
    config = getattr(transformers, family.config)(
        **{name: value for name, value in shape.items() if value is not None or name.endswith(("window", "token_id"))}
    )
    torch.manual_seed(seed % 2**63)
    model = AutoModelForCausalLM.from_config(config).to(getattr(torch, "float32" if family.single else dtype)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.1 * torch.randn_like(weight))
        model.get_output_embeddings().weight.mul_(random.choice((1, 1, 2)))
    return model


def context_of(model: PreTrainedModel) -> int:
    """Returns the number of positions of a tiny model [tokens]."""
    config = model.config.get_text_config(decoder=True)
    return int(getattr(config, "max_position_embeddings", None) or config.n_positions)


def make_draft(kind: str, model: PreTrainedModel, seed: int, *, decoder: bool) -> str | PreTrainedModel | Draft:
    """Makes a draft of one of the kinds in `DRAFTS`.

    Args:
        kind: the kind.
        model: the target.
        seed: seed of the draft's noise.
        decoder: whether only a `Draft` will do, as a decoder takes it.
    """
    random = Random(f"{seed} draft")
    vocabulary = model.get_output_embeddings().weight.shape[0]
    if kind == "lookup":
        return LookupDraft() if decoder else "lookup"
    if kind == "feature":
        embedding = model.get_input_embeddings()
        network = tiny_network(embedding.weight.shape[1], vocabulary, seed % 2**63)
        with torch.no_grad():
            network.head.weight.copy_(model.get_output_embeddings().weight[: network.head.weight.shape[0]])
        return FeatureDraft(network, embedding, context_of(model))
    made = (
        model if kind == "itself" and not decoder else noisy_copy(model, random.choice((0.01, 0.03, 0.1)), seed % 2**63)
    )
    return CausalDraft(CachedModel(made), vocabulary) if decoder or kind == "causal object" else made

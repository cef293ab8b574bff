"""A tiny random model of every causal language model that transformers has."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

WINDOW = 8
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "d_model": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "init_std": 0.2,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    "use_sliding_window": True,
    "max_window_layers": 2,
    "is_decoder": True,
    "is_encoder_decoder": False,
    "tie_word_embeddings": False,
    "rotary_dim": 8,
    "image_size": 28,
    "patch_size": 14,
    "num_layers": 2,
    "depth": 2,
    "num_heads": 4,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "qk_head_dim": 16,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 4,
    "vocab_size_per_layer_input": 64,
    "hidden_size_per_layer_input": 8,
}


EXTRAS: dict[str, dict[str, Any]] = {
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
    "dots1": {"num_attention_heads": 4, "n_shared_experts": 1, "norm_topk_prob": True},
    "dots3_note_text": {"num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
    "roc_bert": {"shape_vocab_size": 64, "pronunciation_vocab_size": 64},
}


def tiny_config(kind: type[PretrainedConfig]) -> PretrainedConfig:
    usual = kind()
    names = set(usual.to_dict()) | set(kind.attribute_map)
    settings = {name: value for name, value in SIZES.items() if name in names}
    if "qk_rope_head_dim" in names:  # multi-head latent attention has head sizes of its own
        settings.pop("head_dim", None)
    parts = {
        name: part for name in kind.sub_configs if isinstance(part := getattr(usual, name, None), PretrainedConfig)
    }
    settings |= {name: tiny_config(type(part)) for name, part in parts.items()}
    return kind(**settings | EXTRAS.get(kind.model_type, {}))

"""A Llama's folder as the GGUF file that llama.cpp reads: the same weights, in the same precision.

The file has no vocabulary. llama.cpp is asked for token ids and gives token ids, so that it reads the very prompt that
everybody else reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from specgym.controllers.evaluation.peers.client import PeerError
from specgym.env.common.files import atomic_path
from specgym.env.models.hub.loading import load_config

_KINDS = {
    "bfloat16": gguf.GGMLQuantizationType.BF16,
    "float16": gguf.GGMLQuantizationType.F16,
    "float32": gguf.GGMLQuantizationType.F32,
}
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(folder: Path, dtype: str, path: Path) -> None:
    """Writes the model in `folder` to `path`. Norms are float32, as llama.cpp wants them.

    Raises:
        PeerError: a model of another kind than Llama, or one with what is not written here.
        FileWriteError: the file could not be written.
    """
    config = load_config(folder)
    _check(config)
    with atomic_path(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama")
        _describe(writer, config)
        for name, weight in _weights(folder, config):
            kind = _KINDS[dtype] if weight.ndim > 1 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _check(config: Any) -> None:
    rope = config.rope_parameters or {} if config.model_type == "llama" else {}
    others = {
        f"a {config.model_type}": config.model_type != "llama",
        "a Llama with scaled rotary positions": rope.get("rope_type", "default") != "default",
        "a Llama with biases": bool(getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False)),
    }
    for what, is_so in others.items():
        if is_so:
            raise PeerError(f"the target is {what}, and only a plain Llama is written as GGUF here")


def _describe(writer: Any, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _weights(folder: Path, config: Any) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every tensor by llama.cpp's name. Where input and output share their weights, the output is left out."""
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
                if name.startswith("lm_head.") and config.tie_word_embeddings:
                    continue
                weight = tensors.get_tensor(name).to(torch.float32)
                heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
                for projection, count in heads.items():
                    if f".{projection}." in name:
                        weight = _interleaved(weight, count)
                yield _their_name(name), weight.numpy()


def _their_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.weight"
    _, _, layer, part = [*stem.split(".", 3), "", "", ""][:4]
    if part not in _LAYER:
        raise PeerError(f"the target has weights {name}, and only a plain Llama is written as GGUF here")
    return f"blk.{layer}.{_LAYER[part]}.weight"


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a projection as llama.cpp rotates them: neighbours in pairs, not halves of a head."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()

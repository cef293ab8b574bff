"""Writes a Llama's folder as the GGUF file that llama.cpp reads: the same weights, in the same precision.

The file has no vocabulary: llama.cpp exchanges token ids, so that it reads the same prompt as every other library.
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

_FORMATS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def write_gguf(folder: Path, dtype: str, path: Path) -> None:
    """Writes the model in `folder` to `path`. Norms are float32, as llama.cpp expects.

    Raises:
        PeerError: a model of another kind than Llama, or one with weights or settings that are not written here.
        FileWriteError: the file could not be written.
    """
    config = load_config(folder)
    _check(config)
    with atomic_path(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama")
        _describe(writer, config)
        for name, weight in _weights(folder, config):
            kind = gguf.GGMLQuantizationType[_FORMATS[dtype] if weight.ndim > 1 else "F32"]
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
    if kind := next((kind for kind, is_kind in others.items() if is_kind), None):
        raise PeerError(f"the target is {kind}, and only a plain Llama is written as GGUF here")


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
    """Yields every tensor by llama.cpp's name. A head that shares the embeddings' weights is left out."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
                if name.startswith("lm_head.") and config.tie_word_embeddings:
                    continue
                gguf_name = names.get_name(name, try_suffixes=(".weight",))
                if gguf_name is None:
                    raise PeerError(f"the target has weights {name}, and only a plain Llama is written as GGUF here")
                weight = tensors.get_tensor(name).to(torch.float32)
                if (projection := name.split(".")[-2]) in heads:
                    weight = _interleaved(weight, heads[projection])
                yield gguf_name, weight.numpy()


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorders a projection's rows, since llama.cpp rotates neighbouring rows as pairs, not the halves of a head."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])  # [heads, half, pair, inputs]
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()

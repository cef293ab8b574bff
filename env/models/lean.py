"""A forward for models built like Llama that does for one text what has to be done, and nothing else.

transformers' forward serves batches, training, caches and masks of every kind; for a single row of a small model, most
of its time goes into that. This one computes the same function of the same weights: embedding, and for every layer
root mean square norm, rotary attention over a `TreeCache` and a gated feed-forward part (Touvron et al. 2023, arXiv
2302.13971). Half precision is rounded where transformers rounds it, but for attention: on a CPU, keys, values and the
weights of attention are float32, which costs no time there, and leaves less to the order of additions.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import rms_norm, silu
from transformers import PreTrainedModel

from env.models.attention import attend
from env.models.cache import KeyValueBuffer, TreeCache
from env.models.packed import Projection, can_pack
from env.tree import IntArray

__all__ = ["LeanModel", "lean_model"]

_FAMILIES = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
# Whose angle at a position does not depend on the length of the text.
_ROTATIONS = frozenset({"default", "linear", "llama3", "yarn"})

_known: weakref.WeakKeyDictionary[PreTrainedModel, tuple[tuple[tuple[int, int], ...], LeanModel]] = (
    weakref.WeakKeyDictionary()
)


def lean_model(model: PreTrainedModel) -> LeanModel | None:
    """The lean forward of a model, or None for one that has to go by transformers' own.

    It is made once for a model, and again when weights have changed since.
    """
    if not _is_plain(model):
        return None
    # Weights that were loaded in inference mode do not say whether they have changed.
    weights = list(model.parameters())
    traceable = not any(weight.is_inference() for weight in weights)
    state = tuple((weight.data_ptr(), weight._version) for weight in weights) if traceable else ()
    known = _known.get(model)
    if known is None or known[0] != state or not traceable:
        _known[model] = known = (state, LeanModel(model))
    return known[1]


def _is_plain(model: PreTrainedModel) -> bool:
    """Whether a model is one of the families, with layers as they were made: no adapters, quantisation or hooks."""
    if type(model).__name__ not in _FAMILIES or not type(model).__module__.startswith("transformers."):
        return False
    config = model.config
    if config.hidden_act != "silu" or model.model.rotary_emb.rope_type not in _ROTATIONS:
        return False
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"):
            return False
        if isinstance(module, nn.Linear) and type(module) is not nn.Linear:
            return False
    linears = (linear for layer in model.model.layers for linear in _linears(layer))
    return all(type(linear) is nn.Linear for linear in linears)


def _linears(layer: Any) -> tuple[nn.Module, ...]:
    attention, gated = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    return (*projections, gated.gate_proj, gated.up_proj, gated.down_proj)


class LeanModel:
    """The forward of one model. It keeps no text: the cache that it is given does.

    Args:
        model: of a family that `lean_model` knows.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        decoder: Any = model.model
        pack = can_pack(model.dtype, model.device)
        self.embedding: nn.Embedding = decoder.embed_tokens
        self.rotation = _Rotation(decoder.rotary_emb, _attention_dtype(model), model.device)
        self.layers = [_Layer(layer, model.config, pack) for layer in decoder.layers]
        self.norm = _Norm(decoder.norm)
        self.head = Projection([model.get_output_embeddings()], pack)
        self.group = self.layers[0].group

    def __call__(
        self,
        tokens: IntArray,
        positions: IntArray,
        mask: torch.Tensor | None,
        cache: TreeCache,
        *,
        keep: int = 0,
        shown: Sequence[int] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Appends rows to the cache.

        Args:
            tokens: `int64[rows]`.
            positions: `int64[rows]`.
            mask: additive, `[1, 1, rows, columns]`, see `attend`.
            cache: of this model.
            keep: last rows whose logits are wanted; 0 for all.
            shown: layers whose outputs are wanted, counted from 0, ascending; None for no states at all.

        Returns:
            Logits `[rows kept, vocabulary]`, and the states after the layers in `shown` and after the final norm, side
            by side, `[rows, (len(shown) + 1) * hidden]`.
        """
        stream = self.embedding(torch.from_numpy(tokens).to(self.embedding.weight.device))
        turn = self.rotation(positions)
        if mask is not None:
            mask = mask.to(self.rotation.dtype).repeat(1, 1, self.group, 1)
        outputs = []
        for number, (layer, buffer) in enumerate(zip(self.layers, cache.layers, strict=True)):
            stream = layer(stream, turn, mask, buffer)
            if shown and number in shown:
                outputs.append(stream)
        final = self.norm(stream)
        logits = self.head(final[-keep:])
        if shown is None:
            return logits, None
        return logits, torch.cat([*outputs, final], dim=-1) if outputs else final


class _Layer:
    """One decoder layer: attention and a gated feed-forward part, each on a normed stream and added to it."""

    def __init__(self, layer: Any, config: Any, pack: bool) -> None:
        attention, gated = layer.self_attn, layer.mlp
        self.dim = int(attention.head_dim)
        self.heads = attention.q_proj.out_features // self.dim
        self.kv_heads = attention.k_proj.out_features // self.dim
        self.group = self.heads // self.kv_heads
        self.scaling = float(attention.scaling)
        self.attention_norm, self.gated_norm = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self.query_norm = _Norm(attention.q_norm) if hasattr(attention, "q_norm") else None
        self.key_norm = _Norm(attention.k_norm) if hasattr(attention, "k_norm") else None
        self.query_key_value = Projection([attention.q_proj, attention.k_proj, attention.v_proj], pack)
        self.output = Projection([attention.o_proj], pack)
        self.gate_up = Projection([gated.gate_proj, gated.up_proj], pack)
        self.down = Projection([gated.down_proj], pack)

    def __call__(
        self, stream: torch.Tensor, turn: _Turn, mask: torch.Tensor | None, buffer: KeyValueBuffer
    ) -> torch.Tensor:
        """The stream `[rows, hidden]` after the layer."""
        stream = stream + self.output(self._attended(self.attention_norm(stream), turn, mask, buffer))
        gate, up = self.gate_up(self.gated_norm(stream)).chunk(2, dim=-1)
        return stream + self.down(silu(gate).mul_(up))

    def _attended(
        self, normed: torch.Tensor, turn: _Turn, mask: torch.Tensor | None, buffer: KeyValueBuffer
    ) -> torch.Tensor:
        rows = len(normed)
        joint = self.query_key_value(normed).view(rows, -1, self.dim)
        query, key = joint[:, : self.heads], joint[:, self.heads : -self.kv_heads]
        if self.query_norm and self.key_norm:
            joint = torch.cat([self.query_norm(query), self.key_norm(key), joint[:, -self.kv_heads :]], dim=1)
        states = joint.to(turn[0].dtype).transpose(0, 1)[None]  # [1, heads and both kinds of kv_heads, rows, dim]
        turned = _rotate(states[:, : -self.kv_heads], turn)
        keys, values = buffer.update(turned[:, self.heads :], states[:, -self.kv_heads :])
        attended = attend(turned[:, : self.heads], keys, values, mask, self.scaling)
        return attended[0].transpose(0, 1).reshape(rows, -1).to(normed.dtype)


class _Norm:
    """A root mean square norm."""

    def __init__(self, norm: Any) -> None:
        self.weight: nn.Parameter = norm.weight
        self.epsilon = float(norm.variance_epsilon)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, (x.shape[-1],), self.weight, self.epsilon)


_Turn = tuple[torch.Tensor, torch.Tensor]  # cosines `[rows, dim]`, sines `[rows, dim / 2]`


class _Rotation:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864), from the model's own angles, kept by position."""

    def __init__(self, rotary: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        self.rotary, self.dtype, self.device = rotary, dtype, device
        self.cos = self.sin = torch.empty(0)

    def __call__(self, positions: IntArray) -> _Turn:
        """Of `int64[rows]`."""
        needed = int(positions.max()) + 1
        if needed > len(self.cos):
            self._make(max(needed, 2 * len(self.cos), 256))
        where = torch.from_numpy(positions).to(self.device)
        return self.cos[where], self.sin[where]

    def _make(self, count: int) -> None:
        reference = torch.empty(0, dtype=self.dtype, device=self.device)
        cos, sin = self.rotary(reference, torch.arange(count, device=self.device)[None])
        self.cos, self.sin = cos[0], sin[0, :, : sin.shape[-1] // 2].contiguous()


def _rotate(states: torch.Tensor, turn: _Turn) -> torch.Tensor:
    """Turns `[…, rows, dim]`."""
    cos, sin = turn
    half = sin.shape[-1]
    turned = states * cos
    turned[..., :half].addcmul_(states[..., half:], sin, value=-1)
    turned[..., half:].addcmul_(states[..., :half], sin)
    return turned


def _attention_dtype(model: PreTrainedModel) -> torch.dtype:
    half = model.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if half and model.device.type == "cpu" else model.dtype

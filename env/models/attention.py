"""Attention over a token tree, for any transformers model with grouped-query attention."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention

from specgym.env.common.errors import PairError
from specgym.env.models.masks import build_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "specgym_tree"
"""name under which transformers knows the attention of this file"""
# Settings that do not change what a row sees or how: masks hold windows, and nothing is dropped out of a model that
# only reads.
_NO_MATTER = frozenset({"dropout", "is_causal", "sliding_window", "position_ids", "use_cache", "cache_position"})


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float | None = None
) -> torch.Tensor:
    """Grouped-query attention that reads every key and value once, without repeating heads in memory.

    The queries of the heads that share a key/value head are stacked as rows: `group * rows` queries against one head.

    Args:
        query: `[batch, heads, rows, dim]`.
        key: `[batch, kv_heads, columns, dim]`.
        value: `[batch, kv_heads, columns, dim]`.
        mask: additive, `[batch or 1, 1, rows, columns]`, or already repeated for each head of a group,
            `[batch or 1, 1, group * rows, columns]`. Without a mask, a single row sees every column; several rows see
            each other causally, which needs as many columns as rows.
        scale: factor of the products; `dim ** -0.5` if None.

    Returns:
        `[batch, heads, rows, dim]`.
    """
    batch, heads, rows, dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    if mask is None and rows > 1:
        if key.shape[2] != rows:
            raise ValueError(f"Without a mask, {rows} rows need as many columns; got {key.shape[2]}.")
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=group > 1)
    packed = query.reshape(batch, kv_heads, group * rows, dim)
    if mask is not None and mask.shape[-2] < group * rows:
        mask = mask.repeat(1, 1, group, 1)
    attended = scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scale)
    return attended.reshape(batch, heads, rows, -1)  # values may be narrower than keys (multi-head latent attention)


def use_tree_attention(model: PreTrainedModel) -> None:
    """Lets the text part of a transformers model attend by `attend`, under masks of `build_mask`.

    Some older models only have attention of their own; they stay as they are.
    """
    transformers.AttentionInterface.register(ATTENTION, _forward)
    transformers.AttentionMaskInterface.register(ATTENTION, build_mask)
    text_part(model).set_attn_implementation(ATTENTION)


def text_part(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the part of a model that reads text, whose configuration names its attention."""
    decoder = model.get_decoder()
    return decoder if isinstance(decoder, transformers.PreTrainedModel) else model  # ModernBERT names its head so


def _forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **settings: object,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`attend` with the signature that transformers expects of attention functions.

    Soft caps, sinks and whatever else a model hands to its attention are left to the model's own plain function.
    """
    if all(name in _NO_MATTER or setting is None for name, setting in settings.items()):
        return attend(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None
    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if own is None:
        names = sorted(name for name in settings if name not in _NO_MATTER)
        raise PairError(f"{type(module).__name__} attends by {', '.join(names)}, which cannot work on a tree here.")
    rows, columns = query.shape[2], key.shape[2]
    if attention_mask is None and rows > 1:
        seen = torch.full((rows, columns), torch.finfo(query.dtype).min, dtype=query.dtype, device=query.device)
        attention_mask = seen.triu_(1 + columns - rows)[None, None]
    return own(module, query, key, value, attention_mask, scaling=scaling, **settings)  # type: ignore[no-any-return]

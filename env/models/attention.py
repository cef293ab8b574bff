"""Attention over a token tree, for any transformers model with grouped-query attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention

from specgym.env.common.arrays import BoolArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "specgym_tree"
"""name under which transformers knows the attention of this file"""


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
    """Lets a transformers model attend by `attend`.

    No mask function is registered on purpose: transformers then passes on the mask that it is given, None included.
    """
    transformers.AttentionInterface.register(ATTENTION, _forward)
    model.set_attn_implementation(ATTENTION)


def _forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """`attend` with the signature that transformers expects of attention functions."""
    return attend(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None


def additive_mask(prefix: int, visible: BoolArray, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Returns the mask of tree rows, which see the whole prefix and their own ancestors.

    Args:
        prefix: columns that every row sees.
        visible: which of the further columns each row sees, `bool[rows, columns]`.
        dtype: the model's. Some models silently misread a boolean mask.
        device: the model's.

    Returns:
        0 where seen and the dtype's lowest value elsewhere, `[1, 1, rows, prefix + columns]`.
    """
    hidden = np.where(visible, 0.0, torch.finfo(dtype).min)
    mask = torch.zeros((1, 1, len(visible), prefix + visible.shape[1]), dtype=dtype, device=device)
    mask[0, 0, :, prefix:] = torch.from_numpy(hidden).to(device, dtype)
    return mask

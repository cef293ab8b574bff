"""One decoder layer as a function of tensors, which TorchScript runs without Python between its operators.

For one row of a small model, Python takes about as long between two operators as the operators themselves. Where
TorchScript cannot compile the function, it runs as plain Python with the same numbers. On a GPU it always does:
TorchScript would fuse operators anew there for every number of rows.
"""

import functools
import warnings
from collections.abc import Callable
from typing import List, NamedTuple, Optional, Tuple  # noqa: UP035  # what TorchScript reads

import torch
from torch import Tensor

# ruff: noqa: UP006, UP045  # TorchScript knows List, Tuple and Optional only

MOST_ROWS = 64
"""a tree of at most this many rows is multiplied by a kernel for just that number"""


class LayerWeights(NamedTuple):
    """The weights of a decoder layer, and its settings."""

    norms: List[Tensor]
    """before attention, before the feed-forward part, and maybe of queries and of keys"""
    epsilon: float
    """added to the mean square in norms"""
    weights: List[List[Tensor]]
    """of four projections (query, key and value; output; gate and up; down), see `project`"""
    biases: List[List[Optional[Tensor]]]
    min_rows: List[int]
    heads: int
    """of queries"""
    scaling: float
    """factor of the products of queries and keys"""


def project(
    x: Tensor, weights: List[Tensor], biases: List[Optional[Tensor]], min_rows: int, has_row_kernel: bool
) -> Tensor:
    """Multiplies `[rows, in]` to `[rows, all outs]`; see `Projection`.

    Args:
        x: the rows.
        weights: of the layers, or a single packed one.
        biases: of the layers, or a single one.
        min_rows: fewest rows of a call if the weight is packed; 0 if the weights are not packed.
        has_row_kernel: whether a packed weight has a kernel for exactly this number of rows, see `has_kernel`.
    """
    if min_rows == 0:
        parts = [torch.nn.functional.linear(x, weight, bias) for weight, bias in zip(weights, biases)]  # noqa: B905
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    rows = x.size(0)
    if not has_row_kernel:
        x = torch.nn.functional.pad(x, [0, 0, 0, padded_rows(rows) - rows])
    elif rows < min_rows:  # a single row
        x = x.expand(min_rows, x.size(1))
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weights[0], biases[0], "none", [], "")
    return result if result.size(0) == rows else result.narrow(0, 0, rows)


def padded_rows(rows: int) -> int:
    """Returns the number of rows to which a text is padded: one of a few numbers, and hardly larger.

    For every number of rows and every shape of weights, oneDNN makes a kernel and keeps it. Each takes over half a MiB,
    and texts of all lengths would need hundreds.
    """
    step = 8
    while rows > 16 * step:
        step *= 2
    return (rows + step - 1) // step * step


def has_kernel(rows: int, is_text: bool) -> bool:
    """Whether a packed weight is multiplied with exactly this number of rows.

    Trees are not padded: every row costs, and a controller grows trees of a few sizes only.

    Args:
        rows: number of rows.
        is_text: whether they are a text rather than a tree.
    """
    return rows == 1 or rows == padded_rows(rows) or (rows <= MOST_ROWS and not is_text)


def decoder_layer(  # noqa: PLR0917  # TorchScript is called by position
    stream: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Optional[Tensor],
    columns: int,
    places: Optional[Tensor],
    layer: LayerWeights,
    has_row_kernel: bool,
) -> Tensor:
    """Returns the stream after a layer: attention and a gated feed-forward part, each on a normed stream and added.

    Args:
        stream: `[rows, hidden]`.
        cos: cosines of the rows' rotary embedding, in the precision of keys and values, `[rows, dim]`.
        sin: sines, `[rows, dim / 2]`.
        keys: buffer that the rows' keys are written to, `[1, kv_heads, capacity, dim]`.
        values: buffer for the rows' values, of the same shape.
        mask: additive, `[1, 1, heads / kv_heads * rows, columns]`, see `attend`; None for one row, or for several that
            are alone in the cache and see each other causally.
        columns: rows of both buffers that are read.
        places: rows of both buffers that are written, `int64[rows]`; None for the last ones that are read.
        layer: the weights.
        has_row_kernel: see `project`.
    """
    rows, kv_heads = stream.size(0), keys.size(1)
    turned, fresh = _states(stream, cos, sin, keys, layer, has_row_kernel)
    new_keys = turned.narrow(1, layer.heads, kv_heads)
    if places is None:
        keys.narrow(2, columns - rows, rows).copy_(new_keys)
        values.narrow(2, columns - rows, rows).copy_(fresh)
    else:
        keys.index_copy_(2, places, new_keys)
        values.index_copy_(2, places, fresh)
    seen_keys, seen_values = keys.narrow(2, 0, columns), values.narrow(2, 0, columns)
    attended = _attended(turned.narrow(1, 0, layer.heads), seen_keys, seen_values, mask, layer.scaling)
    return _after_attention(stream, attended, layer, has_row_kernel)


def _states(  # noqa: PLR0917
    stream: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, layer: LayerWeights, has_row_kernel: bool
) -> Tuple[Tensor, Tensor]:
    """Returns rotated queries and keys, `[1, heads + kv_heads, rows, dim]`, and values, `[1, kv_heads, rows, dim]`."""
    rows, heads, kv_heads, dim = stream.size(0), layer.heads, keys.size(1), keys.size(3)
    half, norms, epsilon = dim // 2, layer.norms, layer.epsilon
    normed = torch.rms_norm(stream, [stream.size(1)], norms[0], epsilon)
    joint = project(normed, layer.weights[0], layer.biases[0], layer.min_rows[0], has_row_kernel)
    joint = joint.view(rows, heads + 2 * kv_heads, dim)
    if len(norms) > 2:
        query = torch.rms_norm(joint.narrow(1, 0, heads), [dim], norms[2], epsilon)
        key = torch.rms_norm(joint.narrow(1, heads, kv_heads), [dim], norms[3], epsilon)
        joint = torch.cat([query, key, joint.narrow(1, heads + kv_heads, kv_heads)], dim=1)
    states = joint.transpose(0, 1).to(keys.dtype)  # [heads + 2 * kv_heads, rows, dim]
    before = states.narrow(0, 0, heads + kv_heads)
    turned = torch.empty([heads + kv_heads, rows, dim], dtype=keys.dtype, device=stream.device)
    torch.mul(before, cos, out=turned)
    turned.narrow(2, 0, half).addcmul_(before.narrow(2, half, half), sin, value=-1)
    turned.narrow(2, half, half).addcmul_(before.narrow(2, 0, half), sin)
    return turned.unsqueeze(0), states.narrow(0, heads + kv_heads, kv_heads).unsqueeze(0)


def _attended(queries: Tensor, keys: Tensor, values: Tensor, mask: Optional[Tensor], scaling: float) -> Tensor:
    """Returns attention's results `[rows, 1 or kv_heads, heads of each, dim]` for queries `[1, heads, rows, dim]`."""
    heads, rows, dim, kv_heads = queries.size(1), queries.size(2), queries.size(3), keys.size(1)
    group = heads // kv_heads
    if mask is None and rows > 1:
        attended = torch.nn.functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=scaling, enable_gqa=group > 1
        )
        return attended.view(heads, rows, dim).transpose(0, 1).unsqueeze(1)
    attended = torch.nn.functional.scaled_dot_product_attention(
        queries.view(1, kv_heads, group * rows, dim), keys, values, attn_mask=mask, scale=scaling
    )
    return attended.view(kv_heads, group, rows, dim).permute(2, 0, 1, 3)


def _after_attention(stream: Tensor, attended: Tensor, layer: LayerWeights, has_row_kernel: bool) -> Tensor:
    """Adds attention's results to the stream, and then the feed-forward part."""
    weights, biases, min_rows = layer.weights, layer.biases, layer.min_rows
    rows, hidden = stream.size(0), stream.size(1)
    width = attended.size(1) * attended.size(2) * attended.size(3)
    mixed = torch.empty([rows, width], dtype=stream.dtype, device=stream.device)
    mixed.view(attended.size()).copy_(attended)
    stream = stream + project(mixed, weights[1], biases[1], min_rows[1], has_row_kernel)
    normed = torch.rms_norm(stream, [hidden], layer.norms[1], layer.epsilon)
    gate_up = project(normed, weights[2], biases[2], min_rows[2], has_row_kernel)
    width = gate_up.size(1) // 2
    gated = torch.nn.functional.silu(gate_up.narrow(1, 0, width)).mul_(gate_up.narrow(1, width, width))
    return stream + project(gated, weights[3], biases[3], min_rows[3], has_row_kernel)


@functools.cache
def layer_function(device: str) -> Callable[..., Tensor]:
    """Returns `decoder_layer`, compiled by TorchScript where that works and helps.

    Args:
        device: type of the device that it will run on.
    """
    if device != "cpu":
        return decoder_layer
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, but there
            return torch.jit.script(decoder_layer)
    except Exception:  # anything that a version of TorchScript does not support
        return decoder_layer

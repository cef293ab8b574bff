"""One decoder layer as a function of tensors, which TorchScript runs without Python between its operators.

For one row of a small model, Python takes about as long between two operators as the operators themselves. Where the
function cannot be scripted, because of an operator that is missing or a version of Python that TorchScript does not
know, it runs as it is, with the same numbers. On a GPU it does so too: there TorchScript would fuse operators anew for
every number of rows.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import List, Optional, Tuple  # noqa: UP035  # what TorchScript reads

import torch

MOST_ROWS = 64
"""rows of a tree that have kernels of their own, at most"""


def project(
    x: torch.Tensor,
    weights: List[torch.Tensor],  # noqa: UP006
    biases: List[Optional[torch.Tensor]],  # noqa: UP006, UP045
    least: int,
    own: bool,
) -> torch.Tensor:
    """`[rows, in]` to `[rows, all outs]`; see `Projection`.

    Args:
        x: the rows.
        weights: of the layers, or one that is packed.
        biases: theirs.
        least: rows of a call at least if the weight is packed, 0 if the weights are not.
        own: whether a packed weight has a kernel of its own for that many rows, see `has_kernel`.
    """
    if least > 0:
        if not own:
            return _project_more(x, weights[0], biases[0])
        if x.size(0) >= least:
            whole: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weights[0], biases[0], "none", [], "")
            return whole
        twice: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x.expand(least, x.size(1)), weights[0], biases[0], "none", [], ""
        )
        return twice.narrow(0, 0, 1)
    parts = [torch.nn.functional.linear(x, weight, bias) for weight, bias in zip(weights, biases)]  # noqa: B905
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _project_more(x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:  # noqa: UP045
    """`project` with a packed weight, by a kernel for as many rows or a few more."""
    rows = x.size(0)
    whole: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
        torch.nn.functional.pad(x, [0, 0, 0, padded_rows(rows) - rows]), weight, bias, "none", [], ""
    )
    return whole.narrow(0, 0, rows)


def padded_rows(rows: int) -> int:
    """To how many rows a text is filled up: full eights, and of more than 128 rows full sixteenths of a power of two.

    oneDNN makes a kernel for every number of rows and every shape of weights, keeps it, and takes more than half a MiB
    for each. Texts have all lengths, which would fill hundreds.
    """
    step = 8
    while rows > 16 * step:
        step *= 2
    return (rows + step - 1) // step * step


def has_kernel(rows: int, text: bool) -> bool:
    """Whether a packed weight is multiplied with just as many rows.

    Trees are not filled up: there every row counts, and a controller grows them to a few sizes.

    Args:
        rows: how many there are.
        text: whether they are a text rather than a tree.
    """
    return rows == 1 or rows == padded_rows(rows) or (rows <= MOST_ROWS and not text)


def decoder_layer(  # noqa: PLR0917  # TorchScript is called by position
    stream: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    mask: Optional[torch.Tensor],  # noqa: UP045
    keys: torch.Tensor,
    values: torch.Tensor,
    columns: int,
    places: Optional[torch.Tensor],  # noqa: UP045
    norms: List[torch.Tensor],  # noqa: UP006
    epsilon: float,
    weights: List[List[torch.Tensor]],  # noqa: UP006
    biases: List[List[Optional[torch.Tensor]]],  # noqa: UP006, UP045
    least: List[int],  # noqa: UP006
    own: bool,
    heads: int,
    scaling: float,
) -> torch.Tensor:
    """The stream after a layer: attention and a gated feed-forward part, each on a normed stream and added to it.

    Args:
        stream: `[rows, hidden]`.
        cos: of the rows' rotary embedding, in the precision of keys and values, `[rows, dim]`.
        sin: likewise, `[rows, dim / 2]`.
        mask: additive, `[1, 1, heads / kv_heads * rows, columns]`, see `attend`; None for one row, or for several that
            are alone in the cache and see each other causally.
        keys: buffer that the rows' keys are written to, `[1, kv_heads, capacity, dim]`.
        values: likewise.
        columns: rows of both that are looked at.
        places: rows of both that are written, `int64[rows]`; the last ones that are looked at if None.
        norms: weights of the norms: before attention, before the feed-forward part, and maybe of queries and of keys.
        epsilon: added to the mean square in norms.
        weights: of four projections: query, key and value; output; gate and up; down. See `project`.
        biases: likewise.
        least: likewise.
        own: likewise.
        heads: of queries.
        scaling: factor of the products of queries and keys.
    """
    rows, kv_heads = stream.size(0), keys.size(1)
    turned, fresh = _states(stream, cos, sin, keys, norms, epsilon, weights[0], biases[0], least[0], own, heads)
    if places is None:
        keys.narrow(2, columns - rows, rows).copy_(turned.narrow(1, heads, kv_heads))
        values.narrow(2, columns - rows, rows).copy_(fresh)
    else:
        keys.index_copy_(2, places, turned.narrow(1, heads, kv_heads))
        values.index_copy_(2, places, fresh)
    seen_keys, seen_values = keys.narrow(2, 0, columns), values.narrow(2, 0, columns)
    attended = _attended(turned.narrow(1, 0, heads), seen_keys, seen_values, mask, scaling)
    return _after_attention(stream, attended, norms, epsilon, weights, biases, least, own)


def _states(  # noqa: PLR0917  # as the one above
    stream: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    norms: List[torch.Tensor],  # noqa: UP006
    epsilon: float,
    weights: List[torch.Tensor],  # noqa: UP006
    biases: List[Optional[torch.Tensor]],  # noqa: UP006, UP045
    least: int,
    own: bool,
    heads: int,
) -> Tuple[torch.Tensor, torch.Tensor]:  # noqa: UP006
    """Queries and keys, turned, `[1, heads + kv_heads, rows, dim]`, and values, `[1, kv_heads, rows, dim]`."""
    rows, kv_heads, dim = stream.size(0), keys.size(1), keys.size(3)
    half = dim // 2
    normed = torch.rms_norm(stream, [stream.size(1)], norms[0], epsilon)
    joint = project(normed, weights, biases, least, own).view(rows, heads + 2 * kv_heads, dim)
    if len(norms) > 2:
        query = torch.rms_norm(joint.narrow(1, 0, heads), [dim], norms[2], epsilon)
        key = torch.rms_norm(joint.narrow(1, heads, kv_heads), [dim], norms[3], epsilon)
        joint = torch.cat([query, key, joint.narrow(1, heads + kv_heads, kv_heads)], dim=1)
    states = joint.transpose(0, 1).to(keys.dtype)
    before = states.narrow(0, 0, heads + kv_heads)
    turned = torch.empty([heads + kv_heads, rows, dim], dtype=keys.dtype, device=stream.device)
    torch.mul(before, cos, out=turned)
    turned.narrow(2, 0, half).addcmul_(before.narrow(2, half, half), sin, value=-1)
    turned.narrow(2, half, half).addcmul_(before.narrow(2, 0, half), sin)
    return turned.unsqueeze(0), states.narrow(0, heads + kv_heads, kv_heads).unsqueeze(0)


def _attended(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: Optional[torch.Tensor],  # noqa: UP045
    scaling: float,
) -> torch.Tensor:
    """What the rows see, `[rows, 1 or kv_heads, heads of each, dim]`, of queries `[1, heads, rows, dim]`."""
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


def _after_attention(  # noqa: PLR0917  # as the one above
    stream: torch.Tensor,
    attended: torch.Tensor,
    norms: List[torch.Tensor],  # noqa: UP006
    epsilon: float,
    weights: List[List[torch.Tensor]],  # noqa: UP006
    biases: List[List[Optional[torch.Tensor]]],  # noqa: UP006, UP045
    least: List[int],  # noqa: UP006
    own: bool,
) -> torch.Tensor:
    """The stream with what the rows see, and with what the feed-forward part makes of that."""
    rows, hidden = stream.size(0), stream.size(1)
    seen = attended.size(1) * attended.size(2) * attended.size(3)
    mixed = torch.empty([rows, seen], dtype=stream.dtype, device=stream.device)
    mixed.view(attended.size()).copy_(attended)
    stream = stream + project(mixed, weights[1], biases[1], least[1], own)
    gate_up = project(torch.rms_norm(stream, [hidden], norms[1], epsilon), weights[2], biases[2], least[2], own)
    width = gate_up.size(1) // 2
    gated = torch.nn.functional.silu(gate_up.narrow(1, 0, width)).mul_(gate_up.narrow(1, width, width))
    return stream + project(gated, weights[3], biases[3], least[3], own)


@functools.cache
def layer_function(device: str) -> Callable[..., torch.Tensor]:
    """`decoder_layer`, scripted where it can be and pays.

    Args:
        device: type of the device that it will run on.
    """
    if device != "cpu":
        return decoder_layer
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is not developed any more, but there
            return torch.jit.script(decoder_layer)
    except Exception:  # whatever a version of it does not know
        return decoder_layer


def as_written() -> AbstractContextManager[None]:
    """Has scripted functions run as they are written: otherwise they would be compiled anew for numbers of rows, which
    change from round to round.
    """
    return torch.jit.optimized_execution(False)  # type: ignore[attr-defined]

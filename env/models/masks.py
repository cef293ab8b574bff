"""Masks of the rows that a transformers model reads.

Each row sees its own branch, as far as the model's layers look back. In transformers, the mask of each kind of layer
(full, sliding window, chunks) is a function of two positions in the text. On a tree, a row's column in the cache is not
its position, so these functions are called with the positions of rows and columns instead. The whole cache stays in
memory; a window only hides columns.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import transformers  # its module of masks takes long to load, and models in the fast form need none

from specgym.env.common.arrays import BoolArray, IntArray
from specgym.env.models.hub.context import has_window

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_reading: ContextVar[RowsRead | None] = ContextVar("rows that the model reads now", default=None)

_windows: weakref.WeakKeyDictionary[PreTrainedModel, Windows] = weakref.WeakKeyDictionary()


@dataclass
class RowsRead:
    """Rows of one forward, and the columns of the cache that they may see."""

    positions: IntArray
    """the rows' positions in their texts, `int64[texts, rows]`"""
    columns: IntArray
    """positions of all columns in use, those of the rows included, `int64[columns]`"""
    visible: BoolArray | None = None
    """which of the last columns each row sees, `bool[rows, last columns]`; every column before them is seen. None if
    positions alone decide it: a row sees itself and what is before it."""
    asked: bool = False
    """whether the model has built a mask of them"""
    windowed: bool = False
    """whether one of the masks had a window or chunks"""

    def mask(
        self, function: Callable[..., torch.Tensor] | None, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor | None:
        """Returns the additive mask `[texts, 1, rows, columns]`; None if a row sees all, or rows see causally.

        Args:
            function: whether a position sees another one, called with tensors (text, head, position, other position).
                None if it sees all before it.
            dtype: the model's.
            device: the model's.
        """
        causal = transformers.masking_utils.causal_mask_function
        function = function or causal
        self.asked, self.windowed = True, self.windowed or function is not causal
        if function is causal and len(self.positions) == 1:
            if self.visible is None:
                return None
            return additive_mask(len(self.columns) - self.visible.shape[1], self.visible, dtype, device)
        texts = torch.arange(len(self.positions), device=device)[:, None, None, None]
        rows = torch.from_numpy(self.positions).to(device)[:, None, :, None]
        columns = torch.from_numpy(self.columns).to(device)[None, None, None, :]
        seen = function(texts, torch.zeros_like(texts), rows, columns).expand(len(texts), 1, rows.shape[2], -1)
        if self.visible is not None:
            seen = seen.clone()
            seen[..., len(self.columns) - self.visible.shape[1] :] &= torch.from_numpy(self.visible).to(device)
        return _additive(seen, dtype)


@contextlib.contextmanager
def reading(rows: RowsRead) -> Iterator[RowsRead]:
    """Lets masks that a model builds within the block be masks of these rows."""
    token = _reading.set(rows)
    try:
        yield rows
    finally:
        _reading.reset(token)


_lending = threading.Lock()  # the masks are on the model object, which threads share


class Windows(NamedTuple):
    """Where a model sees a part of its text only."""

    some: bool
    """whether some layers do, within the context"""
    local: list[Any]
    """GPT-Neo's layers, local and global, which hold a mask of their own as `bias`"""


def windows_of(model: PreTrainedModel) -> Windows:
    """Returns the windows of a model, which are looked for once."""
    if model not in _windows:
        local = [part for part in model.modules() if getattr(part, "attention_type", None) in ("local", "global")]
        local = [part for part in local if getattr(getattr(part, "bias", None), "ndim", 0) == 4]
        _windows[model] = Windows(has_window(model.config), local)
    return _windows[model]


@contextlib.contextmanager
def local_masks(layers: Sequence[Any], rows: RowsRead) -> Iterator[None]:
    """Lends layers, whose own masks follow the cache, masks of these rows for the length of a block.

    A global layer's own mask ends with the context, which the rows of a tree may exceed. Threads wait.
    """
    with contextlib.ExitStack() as block:
        if layers:
            block.enter_context(_lending)
        own = [layer.bias for layer in layers]
        block.callback(_give_back, layers, own)
        if layers:
            size, window = len(rows.columns), layers[0].config.window_size
            function = transformers.masking_utils.sliding_window_causal_mask_function(window)
            mask = rows.mask(function, torch.float32, own[0].device)
            assert mask is not None, "only full attention needs none"
            bias = own[0].new_ones(1, 1, size, size)
            bias[:, :, -mask.shape[2] :] = mask == 0
            earlier = own[0].new_ones(1, 1, size, size).tril()
        for layer in layers:
            layer.bias = bias if layer.attention_type == "local" else earlier
        yield


def _give_back(layers: Sequence[Any], masks: Sequence[torch.Tensor]) -> None:
    for layer, mask in zip(layers, masks, strict=True):
        layer.bias = mask


def build_mask(
    *args: object,
    mask_function: Callable[..., torch.Tensor],
    dtype: torch.dtype,
    device: torch.device,
    **settings: object,
) -> torch.Tensor | None:
    """Builds a mask for transformers: of the rows being read, or the usual one if the user calls the model."""
    rows = _reading.get()
    if rows is not None:
        return rows.mask(mask_function, dtype, torch.device(device))
    seen = transformers.masking_utils.sdpa_mask(
        *args, mask_function=mask_function, dtype=dtype, device=device, **settings
    )
    return None if seen is None else _additive(seen, dtype)


def _additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where seen and the dtype's lowest value elsewhere. Some models silently misread a boolean mask."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


def additive_mask(prefix: int, visible: BoolArray, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Returns the mask of tree rows, which see the whole prefix and their own ancestors.

    Args:
        prefix: columns that every row sees.
        visible: which of the further columns each row sees, `bool[rows, columns]`.
        dtype: the model's.
        device: the model's.

    Returns:
        0 where seen and the dtype's lowest value elsewhere, `[1, 1, rows, prefix + columns]`.
    """
    hidden = np.where(visible, 0.0, torch.finfo(dtype).min)
    mask = torch.zeros((1, 1, len(visible), prefix + visible.shape[1]), dtype=dtype, device=device)
    mask[0, 0, :, prefix:] = torch.from_numpy(hidden).to(device, dtype)
    return mask

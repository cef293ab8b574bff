"""A key/value cache that keeps the accepted path of a tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from specgym.env.common.arrays import BoolArray, IntArray
from specgym.env.kernels.moving import move_rows, trim_heap
from specgym.env.models.fast.graphs import has_fixed_shapes

_STEP = 256  # fewest rows by which a buffer grows


class Rows(NamedTuple):
    """Rows that a forward appends to a text."""

    tokens: IntArray
    """`int64[rows]`"""
    positions: IntArray
    """`int64[rows]`"""
    visible: BoolArray | None
    """which of the last columns, these rows' own included, each row sees, `bool[rows, columns]`; every column before
    them is seen. None for one row, or for several in an empty cache that see each other causally."""


class KeyValueBuffer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not typed
    """Keys and values of one layer in one preallocated buffer each, `[batch, heads, capacity, dim]`.

    New rows are written behind the old ones, and attention gets views, so nothing is concatenated. The empty tail takes
    no memory before it is written. The buffers grow when a request needs more room than any before.

    Args:
        capacity: rows that fit at first.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, capacity: int = _STEP) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocates the buffers, with the shape, precision and device of the first rows."""
        self.capacity = max(self.capacity, key_states.shape[2])
        self.keys, self.values = self._buffer_like(key_states), self._buffer_like(value_states)
        self.is_initialized = True

    def _buffer_like(self, states: torch.Tensor) -> torch.Tensor:
        batch, heads, _, dim = states.shape
        # In fixed shapes attention reads the empty tail as well. Its weight is zero, but NaN would spread all the same.
        make = states.new_zeros if has_fixed_shapes(states.device) else states.new_empty
        return make((batch, heads, self.capacity, dim))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends rows `[batch, heads, rows, dim]` and returns views of all rows."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows = key_states.shape[2]
        self.make_room(rows)
        start, self.length = self.length, self.length + rows
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def has_room(self, rows: int) -> bool:
        """Whether buffers are allocated, and further rows fit into them."""
        return bool(self.is_initialized) and self.length + rows <= self.capacity

    def make_room(self, rows: int) -> bool:
        """Makes room for further rows; returns whether the buffers had to grow."""
        if not self.is_initialized or self.has_room(rows):
            return False
        self.capacity = max(self.length + rows, self.capacity + max(_STEP, self.capacity // 4))
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = self._buffer_like(old)
            new[:, :, : self.length] = old[:, :, : self.length]
            setattr(self, name, new)
        return True

    def keep(self, prefix: int) -> None:
        """Keeps the first `prefix` rows."""
        self.length = prefix

    def reset(self) -> None:
        """Removes all rows; the buffers stay for the next request."""
        self.length = 0
        if self.is_initialized and has_fixed_shapes(self.keys.device):  # a failed text may have left NaN
            with torch.inference_mode():  # they were usually made in inference mode
                self.keys.zero_()
                self.values.zero_()

    def get_seq_length(self) -> int:
        """Returns the number of rows."""
        return self.length

    def get_max_length(self) -> int:
        """Returns -1, which means no bound in transformers: the buffer grows."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns columns and offset of a mask for `query_length` further rows."""
        return self.length + query_length, 0


Buffers: TypeAlias = Sequence[KeyValueBuffer]
"""one for each layer of a model"""


class TreeCache(Cache):  # type: ignore[misc]  # transformers is not typed
    """A transformers cache of `KeyValueBuffer` layers.

    Args:
        layers: number of the model's layers.
        device: where the model is.
    """

    def __init__(self, layers: int, device: torch.device) -> None:
        super().__init__(layers=[KeyValueBuffer() for _ in range(layers)])
        self.device = device

    @property
    def length(self) -> int:
        """Returns the number of rows."""
        return int(self.layers[0].length)

    def make_room(self, rows: int) -> None:
        """Makes room for further rows in all layers."""
        if self.layers[0].has_room(rows):  # then all layers have room
            return
        for layer in self.layers:
            if layer.make_room(rows):
                trim_heap()  # after each layer, or all old buffers would be in memory beside all new ones

    def keep_path(self, prefix: int, path: IntArray) -> None:
        """Keeps the first `prefix` rows and the rows `prefix + path`, moving only those not already in place.

        Args:
            prefix: committed rows.
            path: kept rows of the tree, ascending, counted from the first row behind the prefix.
        """
        in_place = 0
        while in_place < len(path) and path[in_place] == in_place:
            in_place += 1
        layers = [layer for layer in self.layers if layer.is_initialized]  # others read an earlier layer's rows
        if in_place < len(path):
            buffers = [states for layer in layers for states in (layer.keys, layer.values)]
            move_rows(buffers, prefix + in_place, prefix + path[in_place:])
        for layer in layers:
            layer.keep(prefix + len(path))

"""A key/value cache that keeps an accepted path of a tree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from specgym.env.common.arrays import IntArray
from specgym.env.kernels.moving import move_rows
from specgym.env.models.fast.graphs import has_fixed_shapes
from specgym.env.models.fast.resident import return_freed

_STEP = 256  # rows that a buffer grows by at least


class KeyValueBuffer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not typed
    """Keys and values of one layer in one preallocated buffer each, `[batch, heads, capacity, dim]`.

    New rows are written behind the old ones and attention gets views: nothing is concatenated and nothing attends to
    the empty tail, which takes no memory before it is written. The buffers grow when a request needs more than ever
    before.

    Args:
        capacity: rows to hold at first.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, capacity: int = _STEP) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Makes the buffers, in the shape, precision and place of the first rows."""
        self.capacity = max(self.capacity, key_states.shape[2])
        self.keys, self.values = self._buffer_like(key_states), self._buffer_like(value_states)
        self.is_initialized = True

    def _buffer_like(self, states: torch.Tensor) -> torch.Tensor:
        batch, heads, _, dim = states.shape
        # Fixed shapes look at the empty tail too: without weight, but what is no number would go through all the same.
        make = states.new_zeros if has_fixed_shapes(states.device) else states.new_empty
        return make((batch, heads, self.capacity, dim))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends rows `[batch, heads, rows, dim]` and returns views of all rows so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self._append(key_states.shape[2])
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def reserve(self, rows: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> int:
        """Appends rows that the caller will write to `keys` and `values` itself, and returns where they begin.

        Args:
            rows: how many.
            shape: of one row, `(batch, heads, 1, dim)`.
            dtype: of the buffers, which are made when they are first needed.
            device: likewise.
        """
        if not self.is_initialized:
            row = torch.empty(shape, dtype=dtype, device=device)
            self.lazy_initialization(row, row)
        return self._append(rows)

    def _append(self, rows: int) -> int:
        """Makes room for rows and counts them in; returns where they begin."""
        self.make_room(rows)
        start, self.length = self.length, self.length + rows
        return start

    def has_room(self, rows: int) -> bool:
        """Whether there are buffers, and rows to come fit into them."""
        return bool(self.is_initialized) and self.length + rows <= self.capacity

    def make_room(self, rows: int) -> bool:
        """Makes room for rows to come; whether the buffers had to grow for them."""
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
        """Forgets all rows; the buffers stay for the next request."""
        self.length = 0
        if self.is_initialized and has_fixed_shapes(self.keys.device):  # a text that failed may have left NaN
            with torch.inference_mode():  # where they were made, as a rule
                self.keys.zero_()
                self.values.zero_()

    def get_seq_length(self) -> int:
        """Rows held."""
        return self.length

    def get_max_length(self) -> int:
        """-1, transformers' word for no bound: the buffer grows."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns and offset of a mask for `query_length` further rows."""
        return self.length + query_length, 0


def reserve_all(
    buffers: Sequence[KeyValueBuffer], rows: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """`KeyValueBuffer.reserve` of buffers that hold the same text."""
    if not buffers[0].has_room(rows):
        for buffer in buffers:
            buffer.reserve(rows, shape, dtype, device)
        return
    length = buffers[0].length + rows  # what has room in one has room in all: nothing else is to be done
    for buffer in buffers:
        buffer.length = length


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
        """Rows held."""
        return int(self.layers[0].length)

    def make_room(self, rows: int) -> None:
        """Makes room for rows to come in all layers, and returns what the buffers that became too small have taken."""
        if self.layers[0].has_room(rows):  # as all of them, since they hold the same text
            return
        for layer in self.layers:
            if layer.make_room(rows):
                return_freed()  # now: all old buffers beside all new ones would be the most that is ever held

    def keep_path(self, prefix: int, path: IntArray) -> None:
        """Keeps the first `prefix` rows and the rows `prefix + path`, moving only those not already in place.

        Args:
            prefix: committed rows.
            path: kept rows of the tree, ascending, counted from the first one behind the prefix.
        """
        in_place = 0
        while in_place < len(path) and path[in_place] == in_place:
            in_place += 1
        if in_place < len(path):
            buffers = [states for layer in self.layers for states in (layer.keys, layer.values)]
            move_rows(buffers, prefix + in_place, prefix + path[in_place:])
        for layer in self.layers:
            layer.keep(prefix + len(path))

"""A cache whose rows are texts of their own: they begin, advance and end independently."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

__all__ = ["SlotCache"]


@dataclass
class _Extent:
    """What the layers share; they do not hold the cache itself, so that it goes as soon as nobody needs it."""

    slots: int
    capacity: int
    lengths: torch.Tensor

    @property
    def rows(self) -> torch.Tensor:
        """Rows in use, `int64[texts]`."""
        return torch.arange(len(self.lengths), device=self.lengths.device)

    @property
    def width(self) -> int:
        """Columns in use, the forward under way included."""
        return int(self.lengths.max()) + 1


class _SlotLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """Keys and values `[slots, heads, capacity, dim]`, of which the first rows are in use."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, extent: _Extent) -> None:
        super().__init__()
        self.extent = extent
        self.is_initialized = False

    def prepare(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Makes room for states shaped like these, `[…, heads, …, dim]`."""
        if not self.is_initialized:
            slots, capacity = self.extent.slots, self.extent.capacity
            self.keys = keys.new_zeros(slots, keys.shape[1], capacity, keys.shape[3])
            self.values = values.new_zeros(slots, values.shape[1], capacity, values.shape[3])
            self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.prepare(key_states, value_states)
        lengths, rows, width = self.extent.lengths, self.extent.rows, self.extent.width
        self.keys[rows, :, lengths] = key_states[:, :, 0]
        self.values[rows, :, lengths] = value_states[:, :, 0]
        return self.keys[: len(rows), :, :width], self.values[: len(rows), :, :width]


class SlotCache(Cache):  # type: ignore[misc]  # transformers is not typed
    """Keys and values of several texts; every forward appends one token to each.

    Args:
        model: whose cache it is.
        slots: most texts at a time.
        capacity: longest text [tokens].
    """

    def __init__(self, model: PreTrainedModel, slots: int, capacity: int) -> None:
        self._extent = _Extent(slots, capacity, torch.zeros(0, dtype=torch.long, device=model.device))
        super().__init__(layers=[_SlotLayer(self._extent) for _ in range(model.config.num_hidden_layers)])

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens held of each text, `int64[texts]`."""
        return self._extent.lengths

    @lengths.setter
    def lengths(self, lengths: torch.Tensor) -> None:
        self._extent.lengths = lengths

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """The additive mask of the next forward: each text sees itself, `[texts, 1, 1, width]`."""
        columns = torch.arange(self._extent.width, device=self.lengths.device)
        hidden = columns[None, :] > self.lengths[:, None]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=self.lengths.device)
        return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None, None, :]

    @torch.inference_mode()
    def add(self, states: DynamicCache, length: int) -> None:
        """Begins a text whose first `length` tokens were read into `states`."""
        row = len(self.lengths)
        for layer, read in zip(self.layers, states.layers, strict=False):  # nothing read: no layers either
            layer.prepare(read.keys, read.values)
            layer.keys[row, :, :length] = read.keys[0]
            layer.values[row, :, :length] = read.values[0]
        self.lengths = torch.cat([self.lengths, self.lengths.new_tensor([length])])

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        """Ends a text; the last one takes its row."""
        last = len(self.lengths) - 1
        length = int(self.lengths[last])
        for layer in self.layers if row != last else ():
            layer.keys[row, :, :length] = layer.keys[last, :, :length]
            layer.values[row, :, :length] = layer.values[last, :, :length]
        self.lengths[row] = length
        self.lengths = self.lengths[:-1]

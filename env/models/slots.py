"""A cache of several texts that begin, advance and end independently; each text is a row."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from specgym.env.models.masks import RowsRead, reading

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Extent:
    """State that all layers share. They hold no reference to the cache, which would keep its memory alive.

    Lengths are kept on the host as well: reading them from a GPU would make every layer wait.
    """

    def __init__(self, slots: int, capacity: int, device: torch.device) -> None:
        self.slots, self.capacity, self.device = slots, capacity, device
        self.hold([])

    def hold(self, held: list[int]) -> None:
        """Sets how many tokens each text has."""
        self.held = held
        self.lengths = torch.tensor(held, dtype=torch.long, device=self.device)
        self.rows = torch.arange(len(held), device=self.device)
        self.width = max(held, default=0) + 1  # columns in use, those of the current forward included


class _SlotLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """Keys and values `[slots, heads, capacity, dim]`; the first rows are in use."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, extent: _Extent) -> None:
        super().__init__()
        self.extent = extent
        self.is_initialized = False

    def prepare(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Allocates memory for states of this shape, `[…, heads, …, dim]`, on first use."""
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
    """Keys and values of several texts. Every forward appends one token to each text; `advance` counts it.

    Args:
        model: the model that fills the cache.
        slots: most texts at a time.
        capacity: longest text [tokens].
    """

    def __init__(self, model: PreTrainedModel, slots: int, capacity: int) -> None:
        self._extent = _Extent(slots, capacity, model.device)
        layers = int(model.config.get_text_config(decoder=True).num_hidden_layers)
        super().__init__(layers=[_SlotLayer(self._extent) for _ in range(layers)])

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of each text, `int64[texts]`."""
        return self._extent.lengths

    @property
    def held(self) -> Sequence[int]:
        """`lengths` on the host."""
        return self._extent.held

    def advance(self) -> None:
        """Counts the token that the last forward has appended to each text."""
        self._extent.hold([length + 1 for length in self._extent.held])

    def reading(self) -> AbstractContextManager[RowsRead]:
        """Lets masks of the next forward show each text its own tokens, the appended one included."""
        positions = np.array(self.held, np.int64)[:, None]  # [texts, 1]
        return reading(RowsRead(positions, np.arange(self._extent.width)))

    @torch.inference_mode()
    def add(self, states: DynamicCache, lengths: Sequence[int]) -> None:
        """Adds texts.

        Args:
            states: keys and values of the texts, one row each, padded on the right; without layers if nothing was read.
            lengths: tokens of each text.
        """
        first, width = len(self.held), max(lengths)
        rows = slice(first, first + len(lengths))
        for layer, read in zip(self.layers, states.layers, strict=False):  # nothing read: no layers either
            layer.prepare(read.keys, read.values)
            layer.keys[rows, :, :width] = read.keys
            layer.values[rows, :, :width] = read.values
        self._extent.hold([*self.held, *lengths])

    @torch.inference_mode()
    def remove(self, rows: Collection[int]) -> list[int]:
        """Removes texts; texts of the last rows take their places.

        Returns:
            For each remaining row, the former row of the text that it holds now.
        """
        held, left = self.held, len(self.held) - len(rows)
        gone = set(rows)
        places = [row for row in range(left) if row in gone]
        movers = [row for row in range(left, len(held)) if row not in gone]
        order = list(range(left))
        for place, mover in zip(places, movers, strict=True):
            order[place] = mover
        if movers:
            width = max(held[row] for row in movers)
            old, new = (torch.tensor(numbers, device=self.lengths.device) for numbers in (movers, places))
            for layer in self.layers:
                for states in (layer.keys, layer.values) if layer.is_initialized else ():
                    states[new, :, :width] = states[old, :, :width]
        self._extent.hold([held[row] for row in order])
        return order

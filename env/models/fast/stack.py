"""Decoder layers of a model built like Llama, for one text: norms, rotary tables, single layers and their stack.

Half precision is rounded where transformers rounds it, except in attention. On a CPU, keys, values and the weights of
attention are float32: this costs no time there, and results depend less on the order of additions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from specgym.env.common.arrays import IntArray
from specgym.env.kernels.moving import to_device_async
from specgym.env.models.cache import Buffers, KeyValueBuffer, Rows
from specgym.env.models.fast.fixed import FixedInputs, Rotation
from specgym.env.models.fast.layer import LayerWeights, has_kernel, layer_function
from specgym.env.models.fast.native import Fusion, LayerShape, NativeForward, NativeLayer
from specgym.env.models.fast.packed import Projection
from specgym.env.models.masks import additive_mask

Angles: TypeAlias = Callable[[Tensor], Rotation]
"""from `int64[positions]` to cosines and sines of the rotary embedding, `[positions, dim / 2]` each"""


def state_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Returns the precision of keys and values for a model of `dtype`, see the top of this file."""
    half = dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if half and device.type == "cpu" else dtype


class LeanNorm:
    """A root mean square norm.

    Args:
        weight: `[width]`.
        epsilon: added to the mean square.
    """

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        self.weight, self.epsilon = weight.detach(), epsilon

    def __call__(self, x: Tensor) -> Tensor:
        """Normalizes `[rows, width]`."""
        return rms_norm(x, (x.shape[-1],), self.weight, self.epsilon)


class RotaryTables:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864) in tables by position.

    Args:
        angles: computes cosines and sines.
        dtype: precision of the tables.
        device: device of the tables.
    """

    def __init__(self, angles: Angles, dtype: torch.dtype, device: torch.device) -> None:
        self.angles, self.dtype, self.device = angles, dtype, device
        self.tables = torch.empty(0), torch.empty(0)

    def up_to(self, needed: int) -> Rotation:
        """Returns tables of at least `needed` positions: cosines `[positions, dim]`, sines `[positions, dim / 2]`."""
        tables = self.tables  # both at once: other threads use them too
        if needed > len(tables[0]):
            cos, sin = self.angles(torch.arange(max(needed, 2 * len(tables[0]), 256), device=self.device))
            self.tables = tables = torch.cat([cos, cos], dim=-1).to(self.dtype), sin.to(self.dtype).contiguous()
        return tables

    def __call__(self, positions: IntArray) -> Rotation:
        """Returns cosines `[rows, dim]` and sines `[rows, dim / 2]` of `int64[rows]`."""
        cos, sin = self.up_to(int(positions.max()) + 1)
        index = to_device_async(positions, self.device)
        return cos[index], sin[index]


class Window(NamedTuple):
    """The part of a key/value buffer that rows see, and where they are written; see `decoder_layer`."""

    mask: Tensor | None
    """additive, `[1, 1, group * rows, columns]`"""
    columns: int
    places: Tensor | None = None


class LeanLayer:
    """The weights of one decoder layer, ready for `decoder_layer` or for compiled functions.

    Args:
        norms: weights of the norms: before attention, before the feed-forward part, and maybe of queries and keys.
        parts: projections: query, key and value; output; gate and up; down.
        shape: heads, widths and factors.
    """

    def __init__(self, norms: Sequence[Tensor], parts: Sequence[Projection], shape: LayerShape) -> None:
        self.shape = shape
        matrices = [part.native for part in parts if part.native is not None]
        self.native = NativeLayer(norms, matrices, shape) if matrices else None
        self._device = norms[0].device.type
        weights, biases = [part.weights for part in parts], [part.biases for part in parts]
        settings = [part.min_rows for part in parts], shape.heads, shape.scaling
        self._weights = LayerWeights(list(norms), shape.epsilon, weights, biases, *settings)

    def __call__(self, stream: Tensor, rotation: Rotation, window: Window, buffer: KeyValueBuffer) -> Tensor:
        """Returns the stream `[rows, hidden]` after the layer.

        Args:
            stream: the stream before the layer.
            rotation: cosines and sines of the rows' positions.
            window: the part of the buffer that is used.
            buffer: keys and values; the rows are already counted in.
        """
        row_kernel = has_kernel(len(stream), is_text=window.mask is None)
        run = layer_function(self._device)
        return run(stream, *rotation, buffer.keys, buffer.values, *window, self._weights, row_kernel)


class LeanStack:
    """Decoder layers of one shape, one after the other.

    Args:
        layers: the layers.
        dtype: precision of keys and values.
    """

    def __init__(self, layers: Sequence[LeanLayer], dtype: torch.dtype) -> None:
        self._layers, self._dtype, self._shape = layers, dtype, layers[0].shape
        self._group = self._shape.heads // self._shape.kv_heads

    def native_forward(
        self, table: Tensor, norm: LeanNorm, head: Projection, fusion: Fusion | None = None
    ) -> NativeForward | None:
        """Returns the model as one compiled function (see `NativeForward`), or None if weights are not packed for it.

        All norms outside of the layers have the epsilon of `norm`.
        """
        natives = [layer.native for layer in self._layers if layer.native is not None]
        if not natives or head.native is None:
            return None
        return NativeForward(natives, table, norm.weight, head.native, epsilon=norm.epsilon, fusion=fusion)

    def reserve(self, buffers: Buffers, inputs: Rows, device: torch.device, room: int) -> None:
        """Appends rows to the buffers, one buffer a layer; the caller writes them.

        Args:
            buffers: one for each layer.
            inputs: the rows.
            device: device of new buffers.
            room: number of rows that have to fit, at least those.

        Raises:
            ValueError: several rows without `visible`, and the buffers are not empty.
        """
        length, rows = buffers[0].length, len(inputs.tokens)
        if inputs.visible is None and length and rows > 1:
            raise ValueError(f"Without a mask, {rows} rows need an empty cache; it holds {length}.")
        if not buffers[0].has_room(room):  # otherwise all buffers have room, since they hold the same text
            row = torch.empty((1, self._shape.kv_heads, 1, self._shape.dim), dtype=self._dtype, device=device)
            for buffer in buffers:
                if not buffer.is_initialized:
                    buffer.lazy_initialization(row, row)
                buffer.make_room(room)
        for buffer in buffers:
            buffer.length += rows

    def window(self, inputs: Rows, length: int, device: torch.device) -> Window:
        """Returns the window of rows that are the last ones of buffers of `length` rows."""
        mask, visible = None, inputs.visible
        if visible is not None:
            mask = additive_mask(length - visible.shape[1], visible, self._dtype, device).repeat(1, 1, self._group, 1)
        return Window(mask, length)

    def fixed_window(self, inputs: FixedInputs) -> Window:
        """Returns the window of rows in fixed shapes."""
        mask = torch.zeros(inputs.visible.shape, dtype=self._dtype, device=inputs.visible.device)  # [rows, columns]
        mask = mask.masked_fill_(inputs.visible.logical_not(), torch.finfo(self._dtype).min)
        places = inputs.start + torch.arange(inputs.shape.rows, device=inputs.visible.device)
        return Window(mask.repeat(self._group, 1)[None, None], inputs.shape.columns, places)

    def __call__(
        self, stream: Tensor, rotation: Rotation, window: Window, buffers: Buffers, shown: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Runs the layers by torch's operators.

        Args:
            stream: `[rows, hidden]`.
            rotation: cosines and sines of the rows' positions.
            window: the part of the buffers that is used.
            buffers: one for each layer; the rows are already counted in.
            shown: layers whose outputs are returned, counted from 0, ascending.

        Returns:
            The stream after the last layer, and after each layer in `shown`.
        """
        outputs = []
        # Scripted functions run as they are: otherwise they would be compiled anew for each number of rows.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            for number, (layer, buffer) in enumerate(zip(self._layers, buffers, strict=True)):
                stream = layer(stream, rotation, window, buffer)
                if number in shown:
                    outputs.append(stream)
        return stream, outputs

"""A forward of few rows on fixed memory and in fixed shapes, which a GPU runs as one CUDA graph.

A forward of few rows has hundreds of small kernels. Launched one by one, they keep a GPU waiting for the processor most
of the time. A CUDA graph is launched at once, but always does the same to the same memory. So rows and columns of the
cache are padded to powers of two, and each such shape has its graph. Everything that changes from one forward to
the next is sent in a single transfer. Padding rows are written behind the others, where no row looks and the next
forward writes. Where a graph cannot be captured, the same work is launched piece by piece, as on a device without
graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from specgym.env.models.cache import Buffers, Rows
from specgym.env.models.fast.graphs import Graph, Graphs
from specgym.env.models.fast.layer import MOST_ROWS

_COLUMNS = 256  # fewest columns of a shape

Rotation: TypeAlias = tuple[Tensor, Tensor]
"""cosines `[positions, dim]` and sines `[positions, dim / 2]` of the rotary embedding"""
Results: TypeAlias = tuple[Tensor, Tensor, list[Tensor]]
"""rows after the last norm `[rows, hidden]`, logits `[rows, vocabulary]`, and rows after each layer that is shown"""


class Shape(NamedTuple):
    """The sizes that are fixed in a forward."""

    rows: int
    columns: int
    """of the cache that attention reads"""


def shape_for(rows: int, start: int) -> Shape:
    """Returns the smallest shape for rows that are written from `start` on."""
    filled = 1 << (rows - 1).bit_length()
    return Shape(filled, max(1 << (start + filled - 1).bit_length(), _COLUMNS))


class FixedInputs:
    """The memory that a forward of one shape reads.

    Args:
        shape: the shape.
        rotation: tables for all positions that fit.
        features: memory for features, see below; None if rows begin with tokens only.

    Attributes:
        cos: `[positions, dim]`.
        sin: `[positions, dim / 2]`.
        tokens: `int64[rows]`.
        positions: `int64[rows]`.
        start: the first row of the cache that is written, `int64[1]`.
        visible: which columns each row sees, `bool[rows, columns]`.
        features: what rows begin with besides tokens, `[rows, width]`, or None.
    """

    def __init__(self, shape: Shape, rotation: Rotation, features: Tensor | None) -> None:
        self.shape, self.features = shape, features
        self.cos, self.sin = rotation  # kept, since graphs read these tables even when longer ones replace them
        numbers = 2 * shape.rows + 1
        self._memory = torch.zeros(
            8 * numbers + shape.rows * shape.columns, dtype=torch.uint8, device=rotation[0].device
        )
        integers, flags = self._memory[: 8 * numbers].view(torch.int64), self._memory[8 * numbers :].view(torch.bool)
        self.tokens, self.positions, self.start = torch.split(integers, [shape.rows, shape.rows, 1])
        self.visible = flags.view(shape.rows, shape.columns)

    def fill(self, inputs: Rows, start: int, features: Tensor | None) -> None:
        """Sends the next forward's inputs, which are written from `start` on; see `FixedForward`."""
        tokens, positions, visible = inputs
        rows, filled = len(tokens), self.shape.rows
        # New memory each time: the last transfer may not be over yet.
        memory = torch.zeros(
            len(self._memory), dtype=torch.uint8, device="cpu", pin_memory=self._memory.device.type == "cuda"
        )
        numbers = memory.numpy()[: 8 * (2 * filled + 1)].view(np.int64)
        numbers[:rows], numbers[filled : filled + rows], numbers[-1] = tokens, positions, start
        flags = memory.numpy()[numbers.nbytes :].view(np.bool_).reshape(self.shape)
        flags[:rows, : start + rows] = True
        if visible is not None:
            flags[:rows, start + rows - visible.shape[1] : start + rows] = visible
        flags[rows:] = True  # a row that sees nothing would become NaN, and the cache is read with it
        self._memory.copy_(memory, non_blocking=True)
        if self.features is not None:
            assert features is not None, "a forward that begins with features"
            self.features[:rows] = features


class FixedForward:
    """A forward from tokens to logits in fixed shapes.

    Args:
        run: maps inputs, buffers and the numbers of the layers to show to results. It never waits for the device and
            always uses the same weights.
        table: embeddings, `[vocabulary, hidden]`.
        rotation: returns tables for at least that many positions.
        features: whether rows begin with features, as wide as embeddings.

    Attributes:
        graphs: the graphs by shape and layers shown.
    """

    def __init__(
        self,
        run: Callable[[FixedInputs, Buffers, Sequence[int]], Results],
        table: Tensor,
        rotation: Callable[[int], Rotation],
        *,
        features: bool = False,
    ) -> None:
        self._run, self._table, self._rotation, self._features = run, table, rotation, features
        self.graphs: Graphs[tuple[Shape, tuple[int, ...]], Results] = Graphs(table.device, "A forward", "Decoding")
        self._inputs: dict[Shape, FixedInputs] = {}
        self._places: tuple[tuple[int, ...], ...] = ()  # addresses and shapes of the buffers that the graphs write to

    def accepts(self, inputs: Rows) -> bool:
        """Whether a forward has few rows; the reading of a text has many.

        Raises:
            IndexError: a token that the model does not have; on a GPU it would end the process.
        """
        tokens, rows, known = inputs.tokens, len(inputs.tokens), len(self._table)
        if not 0 <= tokens.min() <= tokens.max() < known:
            raise IndexError(
                f"Expected tokens of the {known} that the model has; got {tokens.min()} to {tokens.max()}."
            )
        return rows == 1 or (rows <= MOST_ROWS and inputs.visible is not None)

    @torch.inference_mode()
    def __call__(
        self, inputs: Rows, buffers: Buffers, *, keep: int, shown: Sequence[int], features: Tensor | None
    ) -> Results:
        """Runs the model.

        Args:
            inputs: the rows.
            buffers: keys and values of the layers, with room for the shape; the rows are already counted in.
            keep: last rows whose logits are returned.
            shown: layers whose results are returned, counted from 0, ascending.
            features: what the rows begin with besides tokens, `[rows, width]`.

        Returns:
            The rows after the last norm, `[rows, hidden]`; logits, `[keep, vocabulary]`; and the rows after each of the
            layers in `shown`. Later forwards do not overwrite them.
        """
        rows = len(inputs.tokens)
        start = buffers[0].length - rows
        shape = shape_for(rows, start)
        if shape not in self._inputs:
            memory = self._table.new_zeros(shape.rows, self._table.shape[1]) if self._features else None
            self._inputs[shape] = FixedInputs(shape, self._rotation(shape.columns), memory)
        fixed = self._inputs[shape]
        fixed.fill(inputs, start, features)
        captured = self._captured(fixed, buffers, tuple(shown)) if self.graphs.capturing else None
        final, logits, outputs = captured.launch() if captured else self._run(fixed, buffers, shown)
        # Graphs share their memory: the next one overwrites what this one leaves.
        return final[:rows].clone(), logits[rows - keep : rows].clone(), [output[:rows].clone() for output in outputs]

    def _captured(self, inputs: FixedInputs, buffers: Buffers, shown: tuple[int, ...]) -> Graph[Results] | None:
        """Returns the graph for a shape, captured if needed; None if it cannot be captured."""
        # An address alone is not enough: freed memory may be reused in another shape.
        states = (states for buffer in buffers for states in (buffer.keys, buffer.values))
        places = tuple((tensor.data_ptr(), *tensor.shape) for tensor in states)
        if places != self._places:  # buffers that have grown
            self.graphs.clear()
            self._places = places
        key = inputs.shape, shown
        if key not in self.graphs:
            self.graphs.capture(key, lambda: self._run(inputs, buffers, shown))
        return self.graphs.get(key)

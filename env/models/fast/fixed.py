"""A forward of few rows on fixed memory and in fixed shapes, which a GPU is given in one piece.

Launched one by one, the hundreds of small kernels of a few rows keep a GPU waiting for the processor most of the time.
A CUDA graph is launched at once, but always does the same to the same memory. So rows are filled up to a power of two
and columns of the cache to another, there is a graph for each such shape, and all that changes from one forward to the
next goes there in a single transfer. Rows that fill up are written behind the others, where nobody looks and the next
forward writes. Where a graph cannot be captured, the very same work is launched piece by piece, as it is on a device
without graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from specgym.env.common.arrays import BoolArray, IntArray
from specgym.env.models.cache import KeyValueBuffer
from specgym.env.models.fast.graphs import Graph, Graphs
from specgym.env.models.fast.layer import MOST_ROWS

_COLUMNS = 256  # of a cache at least

Turn: TypeAlias = tuple[torch.Tensor, torch.Tensor]
Results: TypeAlias = tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]
"""rows after the last norm `[rows, hidden]`, logits `[rows, vocabulary]`, and rows after each of the layers wanted"""


class Shape(NamedTuple):
    """What is fixed in a forward."""

    rows: int
    columns: int
    """of the cache that are looked at"""


def shape_for(rows: int, start: int) -> Shape:
    """The smallest shape for rows that are written from `start` on."""
    filled = 1 << (rows - 1).bit_length()
    return Shape(filled, max(1 << (start + filled - 1).bit_length(), _COLUMNS))


class FixedInputs:
    """The memory that a forward of one shape reads.

    Args:
        shape: the shape.
        turn: cosines and sines of the rotary embedding at all positions that there may be.
        features: what rows begin with besides tokens, as `features` below; None for nothing.

    Attributes:
        cos: `[positions, dim]`.
        sin: `[positions, dim / 2]`.
        tokens: `int64[rows]`.
        positions: `int64[rows]`.
        start: the first row of the cache that is written, `int64[1]`.
        seen: which columns each row sees, `bool[rows, columns]`.
        features: `[rows, width]`, None if none are needed.
    """

    def __init__(self, shape: Shape, turn: Turn, features: torch.Tensor | None) -> None:
        self.shape, self.features = shape, features
        self.cos, self.sin = turn  # the very tables that a graph reads: there may be longer ones by and by
        numbers = 2 * shape.rows + 1
        self._memory = torch.zeros(8 * numbers + shape.rows * shape.columns, dtype=torch.uint8, device=turn[0].device)
        integers, seen = self._memory[: 8 * numbers].view(torch.int64), self._memory[8 * numbers :].view(torch.bool)
        self.tokens, self.positions, self.start = torch.split(integers, [shape.rows, shape.rows, 1])
        self.seen = seen.view(shape.rows, shape.columns)

    def fill(
        self,
        tokens: IntArray,
        positions: IntArray,
        visible: BoolArray | None,
        start: int,
        features: torch.Tensor | None,
    ) -> None:
        """Takes in what is to be read next; arguments as for `FixedForward`, features `[rows, width]`."""
        rows, filled = len(tokens), self.shape.rows
        # A piece of memory of its own each time: the last one may not be on the device yet.
        memory = torch.zeros(len(self._memory), dtype=torch.uint8, pin_memory=self._memory.device.type == "cuda")
        numbers = memory.numpy()[: 8 * (2 * filled + 1)].view(np.int64)
        numbers[:rows], numbers[filled : filled + rows], numbers[-1] = tokens, positions, start
        seen = memory.numpy()[numbers.nbytes :].view(np.bool_).reshape(self.shape)
        seen[:rows, : start + rows] = True
        if visible is not None:
            seen[:rows, start + rows - visible.shape[1] : start + rows] = visible
        seen[rows:] = True  # a row that saw nothing at all would become NaN, and be read with the cache
        self._memory.copy_(memory, non_blocking=True)
        if self.features is not None:
            assert features is not None, "a forward that begins with features"
            self.features[:rows] = features


class FixedForward:
    """From tokens to logits in fixed shapes.

    Args:
        run: the forward: from inputs, buffers and the numbers of the layers wanted to its results, without waiting for
            the device, and always with the same weights.
        table: of embeddings, `[vocabulary, hidden]`.
        turn: cosines and sines of the rotary embedding, as in `FixedInputs`, for a number of positions at least.
        features: whether rows begin with features, as wide as embeddings.

    Attributes:
        graphs: the forwards by shape and layers wanted.
    """

    def __init__(
        self,
        run: Callable[[FixedInputs, Sequence[KeyValueBuffer], Sequence[int]], Results],
        table: torch.Tensor,
        turn: Callable[[int], Turn],
        *,
        features: bool = False,
    ) -> None:
        self._run, self._table, self._turn, self._features = run, table, turn, features
        self.graphs: Graphs[tuple[Shape, tuple[int, ...]], Results] = Graphs(table.device, "A forward", "Decoding")
        self._inputs: dict[Shape, FixedInputs] = {}
        self._places: tuple[tuple[int, ...], ...] = ()  # and shapes of the buffers that the graphs write to

    def takes(self, tokens: IntArray, visible: BoolArray | None) -> bool:
        """Whether such a forward is one of few rows, rather than the reading of a text; arguments as for a call.

        Raises:
            IndexError: a token that the model does not have, which a GPU would not survive.
        """
        rows, known = len(tokens), len(self._table)
        if not 0 <= tokens.min() <= tokens.max() < known:
            found = f"{tokens.min()} to {tokens.max()}"
            raise IndexError(f"Expected tokens of the {known} that the model has; got {found}.")
        return rows == 1 or (rows <= MOST_ROWS and visible is not None)

    @staticmethod
    def room(rows: int, start: int) -> int:
        """Rows that buffers must have room for from `start` on, for that many."""
        return shape_for(rows, start).columns - start

    @torch.inference_mode()
    def __call__(
        self,
        tokens: IntArray,
        positions: IntArray,
        visible: BoolArray | None,
        buffers: Sequence[KeyValueBuffer],
        *,
        keep: int,
        shown: Sequence[int] = (),
        features: torch.Tensor | None = None,
    ) -> Results:
        """Runs the model.

        Args:
            tokens: `int64[rows]`.
            positions: `int64[rows]`.
            visible: which of the last columns each row sees, its own included, `bool[rows, columns]`; every column
                before them is seen. None for one row that sees all.
            buffers: of the layers, with room for the shape; the rows are already counted in.
            keep: last rows whose logits are wanted.
            shown: numbers of layers whose results are wanted, ascending.
            features: what the rows begin with besides tokens, `[rows, width]`.

        Returns:
            The rows after the last norm, `[rows, hidden]`; logits, `[keep, vocabulary]`; and the rows after each of the
            layers in `shown`. All of it is the caller's.
        """
        rows = len(tokens)
        start = buffers[0].length - rows
        shape = shape_for(rows, start)
        inputs = self._inputs.get(shape) or self._new_inputs(shape)
        inputs.fill(tokens, positions, visible, start, features)
        captured = self._captured(inputs, buffers, tuple(shown)) if self.graphs.capturing else None
        final, logits, outputs = captured.launch() if captured else self._run(inputs, buffers, shown)
        # Graphs share their memory: what one leaves there is gone with the next.
        return final[:rows].clone(), logits[rows - keep : rows].clone(), [output[:rows].clone() for output in outputs]

    def _new_inputs(self, shape: Shape) -> FixedInputs:
        features = self._table.new_zeros(shape.rows, self._table.shape[1]) if self._features else None
        self._inputs[shape] = made = FixedInputs(shape, self._turn(shape.columns), features)
        return made

    def _captured(
        self, inputs: FixedInputs, buffers: Sequence[KeyValueBuffer], shown: tuple[int, ...]
    ) -> Graph[Results] | None:
        """The graph for a shape; None if there are none."""
        # Memory that was freed may be the next one's, in another shape.
        places = tuple((each.data_ptr(), *each.shape) for buffer in buffers for each in (buffer.keys, buffer.values))
        if places != self._places:  # buffers that have grown are others
            self.graphs.clear()
            self._places = places
        key = inputs.shape, shown
        if key not in self.graphs:
            self.graphs.capture(key, lambda: self._run(inputs, buffers, shown))
        return self.graphs.get(key)

"""CUDA graphs: work that is given to a GPU in one piece, and what goes with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

_FIXED_ON = frozenset({"cuda"})
_WARM_UPS = 2  # runs before one is captured: on their first ones libraries choose kernels and take memory

_Key = TypeVar("_Key", bound=Hashable)
_Result = TypeVar("_Result")


def has_fixed_shapes(device: torch.device) -> bool:
    """Whether forwards of few rows have fixed shapes there (see `specgym.env.models.fast.fixed`): where graphs are."""
    return device.type in _FIXED_ON


@dataclass(frozen=True)
class Graph(Generic[_Result]):
    """A captured piece of work."""

    graph: torch.cuda.CUDAGraph
    result: _Result
    """memory that every launch writes anew, and that is free for other graphs to write to"""

    def launch(self) -> _Result:
        """Does the work once more."""
        self.graph.replay()
        return self.result


class Graphs(Generic[_Key, _Result]):
    """Graphs of one piece of work, by its shape. They share memory: none reads what another has left.

    Args:
        device: where the work runs.
        what: the work, for a warning: "An update".
        instead: what goes on without graphs, likewise: "Training".

    Attributes:
        capturing: whether there are graphs: on a GPU, until one could not be captured.
    """

    def __init__(self, device: torch.device, what: str, instead: str) -> None:
        self.device, self.what, self.instead = device, what, instead
        self.capturing = device.type == "cuda"
        self._graphs: dict[_Key, Graph[_Result]] = {}

    def __len__(self) -> int:
        return len(self._graphs)

    def __contains__(self, key: _Key) -> bool:
        return key in self._graphs

    def clear(self) -> None:
        """Forgets all graphs."""
        self._graphs.clear()

    def get(self, key: _Key) -> Graph[_Result] | None:
        """The graph of a shape, if it was captured."""
        return self._graphs.get(key)

    def capture(self, key: _Key, work: Callable[[], _Result], before: Callable[[], None] | None = None) -> None:
        """Captures the work in a shape, after having run it; if it cannot be, one is warned and there are no more.

        Args:
            key: the shape.
            work: always does the same to the same memory, runs on the device and never waits for it.
            before: what is done between those runs and the capture.
        """
        try:
            self._graphs[key] = self._captured(work, before)
        except RuntimeError as error:
            warnings.warn(
                f"{self.what} could not be captured as a CUDA graph ({error}). {self.instead} goes on without graphs, "
                "and slower.",
                stacklevel=3,
            )
            self.capturing = False
            self.clear()

    def _captured(self, work: Callable[[], _Result], before: Callable[[], None] | None) -> Graph[_Result]:
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream(self.device)
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream), warnings.catch_warnings():
                # Of an optimizer: the graph is yet to come.
                warnings.filterwarnings("ignore", message=".*capturable=True")
                for _ in range(_WARM_UPS):
                    work()
        finally:
            current.wait_stream(stream)
        if before is not None:
            before()
        graph = torch.cuda.CUDAGraph()
        pool = next((each.graph.pool() for each in self._graphs.values()), None)
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            result = work()
        return Graph(graph, result)

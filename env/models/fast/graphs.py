"""CUDA graphs: work that a GPU is given in one piece."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

_FIXED_ON = frozenset({"cuda"})  # types of devices
_WARM_UPS = 2  # runs before a capture: in the first ones libraries choose kernels and allocate memory

_Key = TypeVar("_Key", bound=Hashable)
_Result = TypeVar("_Result")


def has_fixed_shapes(device: torch.device) -> bool:
    """Whether forwards of few rows have fixed shapes on a device, see `specgym.env.models.fast.fixed`."""
    return device.type in _FIXED_ON


@dataclass(frozen=True)
class Graph(Generic[_Result]):
    """A captured piece of work."""

    graph: torch.cuda.CUDAGraph
    result: _Result
    """memory that every launch writes anew; other graphs may write to it as well"""

    def launch(self) -> _Result:
        """Runs the work once more."""
        self.graph.replay()
        return self.result


class Graphs(dict[_Key, "Graph[_Result]"]):
    """Graphs of one piece of work by its shape. They share memory: no graph reads what another has left there.

    Args:
        device: where the work runs.
        work: name of the work in a warning, such as "An update".
        activity: what goes on without graphs, such as "Training".

    Attributes:
        capturing: whether there are graphs: on a GPU, until one could not be captured.
    """

    def __init__(self, device: torch.device, work: str, activity: str) -> None:
        super().__init__()
        self.device, self._work, self._activity = device, work, activity
        self.capturing = device.type == "cuda"

    def capture(self, key: _Key, work: Callable[[], _Result], before: Callable[[], None] | None = None) -> None:
        """Runs the work a few times and captures it. If that fails, it warns, and no graphs are captured any more.

        Args:
            key: the shape.
            work: always does the same to the same memory, runs on the device and never waits for it.
            before: called between those runs and the capture.
        """
        try:
            self[key] = self._captured(work, before)
        except RuntimeError as error:
            warnings.warn(
                f"{self._work} could not be captured as a CUDA graph ({error}). {self._activity} goes on without "
                "graphs, and slower.",
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
                # An optimizer warns here that it is not captured yet.
                warnings.filterwarnings("ignore", message=".*capturable=True")
                for _ in range(_WARM_UPS):
                    work()
        finally:
            current.wait_stream(stream)
        if before is not None:
            before()
        graph = torch.cuda.CUDAGraph()
        pool = next((known.graph.pool() for known in self.values()), None)
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            result = work()
        return Graph(graph, result)

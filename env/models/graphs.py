"""CUDA graphs: work that is given to a GPU in one piece, and what goes with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["capture", "has_fixed_shapes", "sent"]

_FIXED_ON = frozenset({"cuda"})
_WARM_UPS = 2  # runs before one is captured: on their first ones libraries choose kernels and take memory

_Result = TypeVar("_Result")


def has_fixed_shapes(device: torch.device) -> bool:
    """Whether forwards of few rows have fixed shapes there (see `env.models.fixed`): where graphs are."""
    return device.type in _FIXED_ON


def sent(numbers: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Numbers on a device, without waiting until a GPU has them."""
    tensor = torch.from_numpy(numbers)
    if device.type != "cuda":
        return tensor.to(device)
    # A copy out of pageable memory would wait for all that was launched before it.
    return tensor.pin_memory().to(device, non_blocking=True)


def capture(
    work: Callable[[], _Result],
    device: torch.device,
    pool: Any = None,
    *,
    before: Callable[[], None] | None = None,
) -> tuple[torch.cuda.CUDAGraph, _Result]:
    """Captures work that always does the same to the same memory, after having run it.

    Args:
        work: runs on the device and never waits for it.
        device: a GPU.
        pool: memory that is shared with other graphs (`CUDAGraph.pool`), where none reads what another has left.
        before: what is done between those runs and the capture.

    Returns:
        The graph, and what `work` returned: memory that every launch of the graph writes anew.

    Raises:
        RuntimeError: it cannot be captured, for want of memory among other reasons.
    """
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    current = torch.cuda.current_stream(device)
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*capturable=True")  # of an optimizer: the graph is yet to come
            for _ in range(_WARM_UPS):
                work()
    finally:
        current.wait_stream(stream)
    if before is not None:
        before()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        result = work()
    return graph, result

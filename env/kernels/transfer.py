"""Copying arrays to the device of a model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch


def to_device_async(numbers: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Numbers on a device, without waiting until a GPU has them."""
    tensor = torch.from_numpy(numbers)
    if device.type != "cuda":
        return tensor.to(device)
    # A copy out of pageable memory would wait for all that was launched before it.
    return tensor.pin_memory().to(device, non_blocking=True)

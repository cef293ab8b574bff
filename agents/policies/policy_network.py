"""A policy's network in NumPy: what it takes to act on one observation, in microseconds and without a learning library.

Every buffer is made once; a call allocates next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from specgym.env.common.arrays import IntArray
from specgym.env.gym.features import FeatureVector

Weights: TypeAlias = "dict[str, npt.NDArray[np.float32]]"
"""tensors by name, with the shapes of `expected_shapes`"""


def expected_shapes(entries: int, memory: int, hidden: Sequence[int], heads: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a network.

    Args:
        entries: length of an observation.
        memory: units of a layer of long short-term memory before all others; 0 for none.
        hidden: units of the layers between, each followed by tanh.
        heads: logits of all heads together.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    if memory:
        shapes = {
            "memory.input": (4 * memory, entries),
            "memory.state": (4 * memory, memory),
            "memory.bias": (4 * memory,),
        }
    width = memory or entries
    for index, units in enumerate(hidden):
        shapes |= {f"hidden.{index}.weight": (units, width), f"hidden.{index}.bias": (units,)}
        width = units
    return shapes | {"heads.weight": (heads, width), "heads.bias": (heads,)}


class PolicyNetwork:
    """Chooses, for each head by itself, what has the highest logit.

    Args:
        weights: the tensors of `expected_shapes`, rows by output as torch has them, gates of the memory in its order.
        nvec: choices of each head, `int64[heads]`.
    """

    def __init__(self, weights: Mapping[str, npt.NDArray[np.float32]], nvec: IntArray) -> None:
        layers = sum(name.startswith("hidden.") and name.endswith(".weight") for name in weights)
        self._hidden = [
            (_transposed(weights, f"hidden.{layer}.weight"), weights[f"hidden.{layer}.bias"]) for layer in range(layers)
        ]
        self._memory = _Memory(weights) if "memory.input" in weights else None
        self._buffers = [np.empty_like(bias) for _, bias in self._hidden]
        self._heads, self._bias = _side_by_side(weights, nvec)
        self._flat = np.empty_like(self._bias)
        self._logits = self._flat.reshape(len(nvec), -1)

    def reset(self) -> None:
        """Forgets what came before."""
        if self._memory is not None:
            self._memory.reset()

    def choose(self, seen: FeatureVector) -> IntArray:
        """The choice of each head, `int64[heads]`.

        Args:
            seen: the observation, `float32[entries]`.
        """
        x = seen if self._memory is None else self._memory(seen)
        for (weight, bias), units in zip(self._hidden, self._buffers, strict=True):
            np.dot(x, weight, units)
            np.add(units, bias, units)
            x = np.tanh(units, units)
        np.dot(x, self._heads, self._flat)
        self._flat += self._bias
        chosen: IntArray = self._logits.argmax(axis=1)
        return chosen


class _Memory:
    """A layer of long short-term memory (Hochreiter and Schmidhuber 1997), as torch computes it."""

    def __init__(self, weights: Mapping[str, npt.NDArray[np.float32]]) -> None:
        both = np.concatenate([weights["memory.input"], weights["memory.state"]], axis=1)
        units = len(both) // 4
        # Torch's order is input, forget, new, output. Here the logistic ones stand together, and are halved: the
        # logistic function is (1 + tanh(x / 2)) / 2, which overflows nowhere.
        order = np.r_[: 2 * units, 3 * units : 4 * units, 2 * units : 3 * units]
        half = np.repeat(np.array([0.5, 1], np.float32), [3 * units, units])
        self._weight = np.ascontiguousarray((both[order] * half[:, None]).T)  # [entries + units, 4 * units]
        self._bias = weights["memory.bias"][order] * half
        self._entries = both.shape[1] - units
        self._x = np.zeros(both.shape[1], np.float32)  # the observation, and the state after it
        self._cell = np.zeros(units, np.float32)
        self._gates = np.empty_like(self._bias)
        self._logistic = self._gates[: 3 * units]
        self._input, self._forget, self._output, self._new = self._gates.reshape(4, units)

    def reset(self) -> None:
        self._x[:] = 0
        self._cell[:] = 0

    def __call__(self, seen: FeatureVector) -> npt.NDArray[np.float32]:
        state = self._x[self._entries :]
        self._x[: self._entries] = seen
        np.dot(self._x, self._weight, self._gates)
        self._gates += self._bias
        np.tanh(self._gates, self._gates)
        self._logistic += 1
        self._logistic *= 0.5
        self._cell *= self._forget
        self._cell += self._input * self._new
        np.multiply(self._output, np.tanh(self._cell), state)
        return state


def _transposed(weights: Mapping[str, npt.NDArray[np.float32]], name: str) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(weights[name].T)


def _side_by_side(
    weights: Mapping[str, npt.NDArray[np.float32]], nvec: IntArray
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Weight and bias with as many logits for every head; those that a head does not have are never the highest."""
    weight, bias, most = weights["heads.weight"], weights["heads.bias"], int(nvec.max())
    wide, low = np.zeros((len(nvec), most, weight.shape[1]), np.float32), np.full((len(nvec), most), -np.inf, "f4")
    first = 0
    for head, size in enumerate(nvec.tolist()):
        wide[head, :size], low[head, :size] = weight[first : first + size], bias[first : first + size]
        first += size
    return np.ascontiguousarray(wide.reshape(-1, weight.shape[1]).T), low.reshape(-1)

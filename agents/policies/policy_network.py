"""A policy's network in NumPy, which acts on one observation within microseconds and needs no learning library.

Buffers are allocated once and reused by every call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from specgym.env.common.arrays import BoolArray, IntArray
from specgym.env.common.errors import ParameterError
from specgym.env.gym.features import FeatureVector

Weights: TypeAlias = "dict[str, npt.NDArray[np.float32]]"
"""tensors by name, with the shapes of `expected_shapes`"""


def expected_shapes(entries: int, memory: int, hidden: Sequence[int], heads: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a network's tensors, by name.

    Args:
        entries: length of an observation.
        memory: units of a layer of long short-term memory before all others; 0 for none.
        hidden: units of the layers between, each followed by tanh.
        heads: sum of the logits of all heads.
    """
    gates, width = 4 * memory, memory or entries
    shapes: dict[str, tuple[int, ...]] = {}
    if memory:
        shapes = {"memory.input": (gates, entries), "memory.state": (gates, memory), "memory.bias": (gates,)}
    for index, units in enumerate(hidden):
        shapes |= {f"hidden.{index}.weight": (units, width), f"hidden.{index}.bias": (units,)}
        width = units
    return shapes | {"heads.weight": (heads, width), "heads.bias": (heads,)}


class PolicyNetwork:
    """Chooses the highest logit of each head.

    Args:
        weights: the tensors of `expected_shapes`, one row an output as in torch, with torch's order of gates.
        nvec: number of choices of each head, `int64[heads]`.
    """

    def __init__(self, weights: Mapping[str, npt.NDArray[np.float32]], nvec: IntArray) -> None:
        self._memory = _Memory(weights) if "memory.input" in weights else None
        *self._layers, self._heads = _layers(weights)
        self._logits = np.split(self._heads[2], np.cumsum(nvec)[:-1])  # views, one a head

    def reset(self) -> None:
        """Forgets all observations so far."""
        if self._memory is not None:
            self._memory.reset()

    def choose(self, entries: FeatureVector) -> IntArray:
        """Returns the choice of each head, `int64[heads]`.

        Args:
            entries: the observation, `float32[entries]`.
        """
        x = entries if self._memory is None else self._memory(entries)
        for weight, bias, units in self._layers:
            np.dot(x, weight, units)
            np.add(units, bias, units)
            x = np.tanh(units, units)
        weight, bias, logits = self._heads
        np.dot(x, weight, logits)
        np.add(logits, bias, logits)
        return np.array([head.argmax() for head in self._logits], np.int64)


class _Memory:
    """A layer of long short-term memory (Hochreiter and Schmidhuber 1997), as torch computes it."""

    def __init__(self, weights: Mapping[str, npt.NDArray[np.float32]]) -> None:
        both = np.concatenate([weights["memory.input"], weights["memory.state"]], axis=1)
        units = len(both) // 4
        # Torch's order is input, forget, new, output. Here the logistic gates come first, with halved weights: the
        # logistic function is (1 + tanh(x / 2)) / 2, which never overflows.
        order = np.r_[: 2 * units, 3 * units : 4 * units, 2 * units : 3 * units]
        half = np.repeat(np.array([0.5, 1], np.float32), [3 * units, units])
        self._weight = np.ascontiguousarray((both[order] * half[:, None]).T)  # [entries + units, 4 * units]
        self._bias = weights["memory.bias"][order] * half
        self._entries = both.shape[1] - units
        self._x = np.zeros(both.shape[1], np.float32)  # [entries + units]: the observation, then the state
        self._cell = np.zeros(units, np.float32)
        self._gates = np.empty_like(self._bias)
        self._logistic = self._gates[: 3 * units]
        self._input, self._forget, self._output, self._new = self._gates.reshape(4, units)

    def reset(self) -> None:
        self._x[:] = 0
        self._cell[:] = 0

    def __call__(self, entries: FeatureVector) -> npt.NDArray[np.float32]:
        state = self._x[self._entries :]
        self._x[: self._entries] = entries
        np.dot(self._x, self._weight, self._gates)
        self._gates += self._bias
        np.tanh(self._gates, self._gates)
        self._logistic += 1
        self._logistic *= 0.5
        self._cell *= self._forget
        self._cell += self._input * self._new
        np.multiply(self._output, np.tanh(self._cell), state)
        return state


def batch_act(weights: Weights, nvec: IntArray) -> Callable[[FeatureVector, BoolArray], IntArray]:
    """Returns the batched form of `PolicyNetwork.choose`. Raises `ParameterError` for a policy with a memory."""
    if "memory.input" in weights:
        raise ParameterError("Policies with a memory are played one text at a time: use specgym evaluate.")
    *layers, (head_weight, head_bias, _) = _layers(weights)
    ends = np.cumsum(nvec)[:-1].tolist()

    def act(observations: FeatureVector, first: BoolArray) -> IntArray:
        x = observations  # [episodes, features]
        for weight, bias, _ in layers:
            x = np.tanh(x @ weight + bias)
        logits = x @ head_weight + head_bias
        return np.stack([head.argmax(axis=1) for head in np.split(logits, ends, axis=1)], axis=1)

    return act


def _layers(weights: Mapping[str, npt.NDArray[np.float32]]) -> list[tuple[npt.NDArray[np.float32], ...]]:
    """Returns each layer's weight, transposed and contiguous, its bias and a buffer for its output; the heads last."""
    hidden = [f"hidden.{index}" for index in range(len(weights)) if f"hidden.{index}.weight" in weights]
    layers = [(weights[f"{name}.weight"].T, weights[f"{name}.bias"]) for name in [*hidden, "heads"]]
    return [(np.ascontiguousarray(weight), bias, np.empty_like(bias)) for weight, bias in layers]

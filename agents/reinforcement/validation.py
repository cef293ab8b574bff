"""How fast a policy is on texts that it does not learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agents.action_forms import ActionForm
from agents.vec_env import ReplayVecEnv
from env.features import FeatureVector
from env.grid import ParameterGrid
from env.recordings import ProfileSource, choose_texts
from env.traces.file import Trace
from env.tree import BoolArray, FloatArray, IntArray
from env.vector import ReplayVectorEnv

__all__ = ["Act", "Throughput", "Validation"]

Act = Callable[[FeatureVector, BoolArray], npt.NDArray[np.int64]]
"""`act(observations, first)` chooses for many episodes; `first` tells which of them begin"""


@dataclass(frozen=True)
class Throughput:
    """Tokens and time of the same texts on some machines."""

    tokens: IntArray
    """by profile and way of decoding, greedy before sampled, `int64[profiles, 2]`"""
    time: FloatArray
    """likewise [plain steps]"""

    def by_profile(self) -> FloatArray:
        """Tokens per plain step of all texts, `float64[profiles]`."""
        return np.asarray(self.tokens.sum(axis=1) / self.time.sum(axis=1))

    def by_way(self) -> list[list[float | None]]:
        """Tokens per plain step of greedy and of sampled texts, by profile; None where there are none."""
        return [
            [float(tokens / time) if tokens else None for tokens, time in zip(*row, strict=True)]
            for row in zip(self.tokens, self.time, strict=True)
        ]

    @property
    def score(self) -> float:
        """One number to choose by: the geometric mean over the profiles."""
        return float(np.exp(np.log(self.by_profile()).mean()))


class Validation:
    """Plays every text of a split on every machine.

    Args:
        trace: the texts.
        profiles: the machines.
        grid: the actions.
        form: what a policy chooses.
        observes_draft: see `SpeculationEnv`.
        split: of the texts.

    Raises:
        TraceError, UnrecordedError, ParameterError: see `ReplayVectorEnv`.
    """

    def __init__(
        self,
        trace: Trace,
        profiles: Sequence[ProfileSource],
        grid: ParameterGrid,
        form: ActionForm,
        *,
        observes_draft: bool,
        split: str = "validation",
    ) -> None:
        texts = len(choose_texts(trace.texts, split))
        self._start = {
            "texts": np.tile(np.arange(texts), len(profiles)),
            "profiles": np.repeat(np.arange(len(profiles)), texts),
        }
        envs = ReplayVectorEnv(
            texts * len(profiles),
            traces=trace,
            profile=profiles,
            split=split,
            grid=grid,
            observes_draft=observes_draft,
        )
        self.envs, self._shape = ReplayVecEnv(envs, form), (len(profiles), 2)

    def __call__(self, act: Act) -> Throughput:
        """Judges a policy by its choices. Raises as `ReplayVectorEnv.step` does."""
        envs, sampled = self.envs, ~self.envs.envs.replays.greedy[self._start["texts"]]
        where = self._start["profiles"], sampled.astype(np.int64)
        tokens, time = np.zeros(self._shape, np.int64), np.zeros(self._shape)
        envs.set_options(self._start)
        seen, under_way = envs.reset(), np.ones(envs.num_envs, np.bool_)
        first = under_way.copy()
        while under_way.any():
            seen, _, first, _ = envs.step(act(seen, first))
            np.add.at(tokens, where, np.where(under_way, envs.told["tokens"], 0))
            np.add.at(time, where, np.where(under_way, envs.told["plain_steps"], 0.0))
            under_way &= ~first
        return Throughput(tokens, time)

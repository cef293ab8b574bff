"""How fast a policy is on texts that it does not learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specgym.agents.learning.envs import LearningEnv, ObservationView
from specgym.env.common.arrays import BoolArray, FloatArray, IntArray
from specgym.env.gym.features import FeatureVector
from specgym.env.gym.grid import ParameterGrid
from specgym.env.replay.sources import ProfileSource, choose_texts
from specgym.env.replay.traces.file import Trace
from specgym.env.replay.vector import ReplayVectorEnv

_TOLD = ("tokens", "accepted", "drafted", "rounds", "seconds", "plain_steps")  # rounds are counted here

Act = Callable[[FeatureVector, BoolArray], npt.NDArray[np.int64]]
"""`act(observations, first)` chooses for many episodes; `first` tells which of them begin"""


@dataclass(frozen=True)
class Throughput:
    """Tokens and time of the same texts on some machines."""

    tokens: IntArray
    """by profile and way of decoding, greedy before sampled, `int64[profiles, 2]`"""
    time: FloatArray
    """likewise [plain steps]"""
    counted: IntArray | None = None
    """numbers of the profiles that the score counts; all if None"""

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
        """One number to choose by: the geometric mean over the profiles that count."""
        speeds = self.by_profile()
        return float(np.exp(np.log(speeds if self.counted is None else speeds[self.counted]).mean()))


@dataclass(frozen=True)
class Played:
    """What came of n episodes, each a whole text on a machine."""

    text: IntArray
    """number of the text among `replays.texts`, `int64[n]`"""
    profile: IntArray
    """number of the machine, `int64[n]`"""
    tokens: IntArray
    """`int64[n]`"""
    accepted: IntArray
    """draft tokens among them, `int64[n]`"""
    drafted: IntArray
    """nodes verified, `int64[n]`"""
    rounds: IntArray
    """`int64[n]`"""
    seconds: FloatArray
    """predicted times, `float64[n]` [s]"""
    plain_steps: FloatArray
    """the same in plain rounds, `float64[n]`"""


class Validation:
    """Plays every text of a split on every machine.

    Args:
        trace: the texts.
        profiles: the machines.
        grid: the actions.
        lens: what a policy sees and chooses.
        observes_draft: see `SpeculationEnv`.
        split: of the texts.
        counted: numbers of the profiles that the score counts; all if None.

    Raises:
        TraceError, UnrecordedError, ParameterError: see `ReplayVectorEnv`.
    """

    def __init__(
        self,
        trace: Trace,
        profiles: Sequence[ProfileSource],
        grid: ParameterGrid,
        lens: ObservationView,
        *,
        observes_draft: bool,
        split: str = "validation",
        counted: IntArray | None = None,
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
        self.envs, self._shape, self._counted = LearningEnv(envs, lens), (len(profiles), 2), counted

    def __call__(self, act: Act) -> Throughput:
        """Judges a policy by its choices. Raises as `ReplayVectorEnv.step` does."""
        played = self.play(act)
        sampled = ~self.envs.envs.replays.greedy[played.text]
        tokens, time = np.zeros(self._shape, np.int64), np.zeros(self._shape)
        np.add.at(tokens, (played.profile, sampled.astype(np.int64)), played.tokens)
        np.add.at(time, (played.profile, sampled.astype(np.int64)), played.plain_steps)
        return Throughput(tokens, time, self._counted)

    def play(self, act: Act) -> Played:
        """What came of every text on every machine. Raises as `ReplayVectorEnv.step` does."""
        envs, counts = self.envs, np.zeros((len(_TOLD), self.envs.num_envs))
        envs.set_options(self._start)
        seen, under_way = envs.reset(), np.ones(envs.num_envs, np.bool_)
        first = under_way.copy()
        while under_way.any():
            seen, _, first, _ = envs.step(act(seen, first))
            told = [envs.told[name] if name in envs.told else np.ones(envs.num_envs) for name in _TOLD]
            counts += np.where(under_way, np.array(told), 0.0)
            under_way &= ~first
        tokens, accepted, drafted, rounds = counts[:4].astype(np.int64)
        return Played(self._start["texts"], self._start["profiles"], tokens, accepted, drafted, rounds, *counts[4:])

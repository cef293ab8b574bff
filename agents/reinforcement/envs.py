"""Replays as learners step them: some machines held out, parts of the observation hidden, and hindsight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.action_forms import ActionForm
from agents.observation_groups import columns_of
from agents.vec_env import ReplayVecEnv
from env.features import FeatureVector
from env.tree import FloatArray, IntArray
from env.vector import ReplayVectorEnv

__all__ = ["DrawnMachines", "LearningEnv", "Lens", "hide"]


class DrawnMachines(ReplayVectorEnv):
    """A `ReplayVectorEnv` that may draw from some of its machines only.

    Attributes:
        drawn: numbers of the profiles that episodes are drawn from; all if None, `int64[n]`.
    """

    drawn: IntArray | None = None

    def _draw_profiles(self, count: int) -> IntArray:
        if self.drawn is None:
            return super()._draw_profiles(count)
        return self.np_random.choice(self.drawn, size=count)


@dataclass(frozen=True)
class Lens:
    """What a policy sees and what its choices are."""

    form: ActionForm
    """what choices are"""
    blind: tuple[str, ...] = ()
    """groups of the observation that are hidden, see `GROUPS`"""


class LearningEnv(ReplayVecEnv):
    """A `ReplayVecEnv` through a lens: what is hidden is 0.

    Args:
        envs: the vector environment.
        lens: what is seen and chosen.

    Attributes:
        every: all choices there are, in the order of their joint number, `int64[choices, heads]`.
    """

    def __init__(self, envs: ReplayVectorEnv, lens: Lens) -> None:
        self.lens, self._hidden = lens, columns_of(lens.blind)
        super().__init__(envs, lens.form)
        self.every: IntArray = np.array(list(np.ndindex(*lens.form.nvec.tolist())))

    def gains(self) -> FloatArray:
        """What every choice would bring now: tokens less the price of their time, `float64[num_envs, choices]`.

        A replay knows it of all choices, not only of the one that is taken. Choices are in the order of `every`.

        Raises:
            UnrecordedError, UnmeasuredError: see `ReplayVectorEnv.foresee`.
        """
        shape = (self.num_envs, len(self.every))
        current = np.broadcast_to(self.current[:, None], (*shape, self.current.shape[1]))
        choices = np.broadcast_to(self.every, (*shape, self.every.shape[1]))
        return self.envs.foresee(self.form.move(current, choices, self.seen[:, None]))

    def _with_form(self, seen: FeatureVector) -> FeatureVector:
        shown = super()._with_form(seen)
        if self._hidden.size:
            shown = shown.copy()
            shown[:, self._hidden] = 0
        return shown


def hide(weights: dict[str, Any], blind: Sequence[str]) -> dict[str, Any]:
    """Weights that do not go by what is hidden, whatever it is: so a policy needs no lens at work."""
    first = "memory.input" if "memory.input" in weights else "hidden.0.weight"
    shown = weights[first].copy()
    shown[:, columns_of(blind)] = 0
    return weights | {first: shown}

"""Replays as learners step them: Stable-Baselines3's `VecEnv`, held-out machines and hidden observations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from specgym.agents.policies.action_forms import Absolute, ActionForm
from specgym.agents.policies.observation_groups import columns_of
from specgym.env.common.arrays import FloatArray, IntArray
from specgym.env.common.errors import ParameterError
from specgym.env.gym.features import FEATURES, FeatureVector
from specgym.env.replay.vector import Price, ReplayVectorEnv


class ReplayVecEnv(VecEnv):  # type: ignore[misc]  # the library's types are not checked here
    """A `ReplayVectorEnv` as a `VecEnv`.

    An episode that ends has in its info `terminal_observation`, `TimeLimit.truncated` and, as ``Monitor`` writes them,
    ``episode`` with `r` (reward), `l` (rounds), and besides `tokens` and `plain_steps`, whose quotient over many
    episodes is the throughput in units of plain decoding. Other infos are empty; `told` has them in arrays.

    What `env_method`, `get_attr` and `set_attr` name is the vector environment's, the same for all episodes.

    Args:
        envs: the vector environment; nobody else may step it.
        form: what actions are, and what it adds to observations; absolute values of the grid if None.

    Attributes:
        current: the last action of every episode on the grid, `int64[num_envs, 6]`.
        seen: what the next actions are chosen by, without what `form` adds, `float32[num_envs, features]`.
        told: the info of the last step, see `ReplayVectorEnv`.
    """

    def __init__(self, envs: ReplayVectorEnv, form: ActionForm | None = None) -> None:
        self.envs, self.form = envs, form or Absolute(envs.grid)
        self.actions: npt.NDArray[Any] = np.empty(0, np.int64)
        self.current: IntArray = np.tile(self.form.first, (envs.num_envs, 1))
        self.seen: FeatureVector = np.zeros((envs.num_envs, len(FEATURES)), np.float32)
        self.told: dict[str, Any] = {}
        entries = len(FEATURES) + len(self.form.entries)
        super().__init__(
            envs.num_envs, gym.spaces.Box(0.0, 1.0, (entries,), np.float32), gym.spaces.MultiDiscrete(self.form.nvec)
        )

    def set_lam(self, lam: Price) -> None:
        """Sets the price of time for the steps to come, see `ReplayVectorEnv.set_lam`. Raises `ParameterError`."""
        self.envs.set_lam(lam)

    def reset(self) -> FeatureVector:
        """Begins an episode each; after `seed`, in the order that the first of its seeds decides."""
        options = next((each for each in self._options if each), None)
        self.seen, info = self.envs.reset(seed=self._seeds[0], options=options)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [{name: values[index] for name, values in info.items()} for index in range(self.num_envs)]
        self.current[:] = self.form.first
        return self._with_form(self.seen)

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Takes note of the actions of the step, `int[num_envs, heads]`."""
        self.actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Plays the step. Raises as `ReplayVectorEnv.step` does."""
        moved = self.form.move(self.current, self.actions, self.seen)
        self.current = moved.copy()  # the caller's actions stay as they are
        self.seen, rewards, terminated, truncated, info = self.envs.step(self.current)
        self.told = info
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        done = terminated | truncated
        if done.any():
            episode, last = info["final_info"]["episode"], self._with_form(info["final_obs"])
            self.current[done] = self.form.first
            for index in np.flatnonzero(done).tolist():
                infos[index] = {
                    "terminal_observation": last[index],
                    "TimeLimit.truncated": bool(truncated[index]),
                    "episode": {
                        "r": float(episode["reward"][index]),
                        "l": int(episode["rounds"][index]),
                        "tokens": int(episode["tokens"][index]),
                        "plain_steps": float(episode["plain_steps"][index]),
                    },
                }
        return self._with_form(self.seen), rewards.astype(np.float32), done, infos

    def _with_form(self, seen: FeatureVector) -> FeatureVector:
        return np.concatenate([seen, self.form.shown(self.current)], axis=1) if self.form.entries else seen

    def close(self) -> None:
        """Closes the vector environment."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of the vector environment, once for each of `indices`. Raises `AttributeError`."""
        return [getattr(self.envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute of the vector environment.

        Raises:
            ParameterError: for some of the episodes only, which share it.
        """
        self._check_all(indices)
        setattr(self.envs, attr_name, value)

    def env_method(self, method_name: str, *arguments: Any, indices: VecEnvIndices = None, **options: Any) -> list[Any]:
        """Calls a method of the vector environment once; its result, once for each episode. Raises as `set_attr`."""
        self._check_all(indices)
        return [getattr(self.envs, method_name)(*arguments, **options)] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """That no episode is wrapped."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[npt.NDArray[Any] | None]:
        """None: there are no pictures."""
        return [None] * self.num_envs

    def _check_all(self, indices: VecEnvIndices) -> None:
        chosen = sorted(self._get_indices(indices))
        if chosen != list(range(self.num_envs)):
            raise ParameterError(
                f"These episodes share all their attributes and methods: expected indices=None; got {indices}."
            )


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
class ObservationView:
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

    def __init__(self, envs: ReplayVectorEnv, lens: ObservationView) -> None:
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

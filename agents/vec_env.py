"""Many replays stepped together, as Stable-Baselines3 takes environments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from env.errors import ParameterError
from env.features import FeatureVector
from env.vector import ReplayVectorEnv

__all__ = ["ReplayVecEnv"]


class ReplayVecEnv(VecEnv):  # type: ignore[misc]  # the library's types are not checked here
    """A `ReplayVectorEnv` as a `VecEnv`.

    An episode that ends has in its info `terminal_observation`, `TimeLimit.truncated` and, as ``Monitor`` writes them,
    ``episode`` with `r` (reward), `l` (rounds), and besides `tokens` and `plain_steps`, whose quotient over many
    episodes is the throughput in units of plain decoding. Other infos are empty; `envs.step` has them in arrays.

    What `env_method`, `get_attr` and `set_attr` name is the vector environment's, the same for all episodes.

    Args:
        envs: the vector environment; nobody else may step it.
    """

    def __init__(self, envs: ReplayVectorEnv) -> None:
        self.envs = envs
        self.actions: npt.ArrayLike = ()
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def set_lam(self, lam: float) -> None:
        """Sets the price of time for the steps to come [tokens per plain step]. Raises `ParameterError`."""
        self.envs.set_lam(lam)

    def reset(self) -> FeatureVector:
        """Begins an episode each; after `seed`, in the order that the first of its seeds decides."""
        options = next((each for each in self._options if each), None)
        seen, info = self.envs.reset(seed=self._seeds[0], options=options)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [{name: values[index] for name, values in info.items()} for index in range(self.num_envs)]
        return seen

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Takes note of the actions of the step, `int[num_envs, 6]`."""
        self.actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Plays the step. Raises as `ReplayVectorEnv.step` does."""
        seen, rewards, terminated, truncated, info = self.envs.step(self.actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        done = terminated | truncated
        if done.any():
            episode = info["final_info"]["episode"]
            for index in np.flatnonzero(done).tolist():
                infos[index] = {
                    "terminal_observation": info["final_obs"][index],
                    "TimeLimit.truncated": bool(truncated[index]),
                    "episode": {
                        "r": float(episode["reward"][index]),
                        "l": int(episode["rounds"][index]),
                        "tokens": int(episode["tokens"][index]),
                        "plain_steps": float(episode["plain_steps"][index]),
                    },
                }
        return seen, rewards.astype(np.float32), done, infos

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

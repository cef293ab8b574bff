"""Replays as learners step them: Stable-Baselines3's `VecEnv`, hidden features, held-out machines and validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from specgym.agents.policies.action_forms import ActionForm
from specgym.env.common.arrays import BoolArray, FloatArray, IntArray
from specgym.env.common.errors import ParameterError
from specgym.env.gym.features import FEATURES, FeatureVector, ObservedCosts, feature_columns
from specgym.env.replay.sources import ProfileSource, choose_texts
from specgym.env.replay.traces.file import Trace
from specgym.env.replay.vector import Price, ReplayVectorEnv

_ENDS = (("r", float), ("l", int), ("tokens", int), ("plain_steps", float))
"""what the info of an episode that ends holds, with its type"""

Act = Callable[[FeatureVector, BoolArray], IntArray]
"""`act(observations, first)` chooses for many episodes; `first` tells which of them begin"""


class ReplayVecEnv(VecEnv):  # type: ignore[misc]  # the library's types are not checked here
    """A `ReplayVectorEnv` as a `VecEnv`.

    The info of an episode that ends holds `terminal_observation` and `TimeLimit.truncated`. As ``Monitor`` does, it
    holds ``episode`` with `r` (reward) and `l` (rounds), and also `tokens` and `plain_steps`. Their quotient over many
    episodes is the throughput in units of plain decoding. Other infos are empty; `info` has their contents in arrays.

    `env_method`, `get_attr` and `set_attr` act on the vector environment, which all episodes share.

    Args:
        envs: the vector environment; nothing else may step it.
        form: the form of actions; absolute values of the grid if None.
        without: groups of features that are 0 in what learners observe.

    Attributes:
        last_actions: the last action of every episode on the grid, `int64[num_envs, dimensions]`.
        info: the info of the last step, see `ReplayVectorEnv`.
        all_choices: every combination of the heads' choices, of which the last head's varies fastest,
            `int64[choices, heads]`.
    """

    def __init__(self, envs: ReplayVectorEnv, form: ActionForm | None = None, without: Sequence[str] = ()) -> None:
        self.envs, self.form, self._hidden = envs, form or ActionForm(envs.grid), feature_columns(without)
        self.last_actions: IntArray = np.tile(self.form.first, (envs.num_envs, 1))
        self.info: dict[str, Any] = {}
        self.all_choices: IntArray = np.array(list(np.ndindex(*self.form.nvec.tolist())))
        entries = len(FEATURES) + len(self.form.extra_names)
        observations = gym.spaces.Box(0.0, 1.0, (entries,), np.float32)
        super().__init__(envs.num_envs, observations, gym.spaces.MultiDiscrete(self.form.nvec))

    def set_lam(self, lam: Price) -> None:
        """Sets the price of time for the steps to come, see `ReplayVectorEnv.set_lam`. Raises `ParameterError`."""
        self.envs.set_lam(lam)

    def reset(self) -> FeatureVector:
        """Starts new episodes; after `seed`, in the order that the first of its seeds decides."""
        options = next((options for options in self._options if options), None)
        features, info = self.envs.reset(seed=self._seeds[0], options=options)
        self._reset_seeds()
        self._reset_options()
        entries = {name: values for name, values in info.items() if not name.startswith("_")}
        self.reset_infos = [{name: values[index] for name, values in entries.items()} for index in range(self.num_envs)]
        self.last_actions[:] = self.form.first
        return self._observation(features)

    def step_async(self, actions: IntArray) -> None:
        """Stores the choices for `step_wait`, `int[num_envs, heads]`."""
        self.choices = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Plays the step. Raises as `ReplayVectorEnv.step` does."""
        actions = self.form.actions(self.last_actions, self.choices, self.envs.costs())
        self.last_actions = actions.copy()  # the absolute form returns the caller's own array
        features, rewards, terminated, truncated, info = self.envs.step(actions)
        self.info = info
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        done = terminated | truncated
        if done.any():
            episode, last = info["final_info"]["episode"], features.copy()
            last[done] = np.stack(info["final_obs"][done].tolist())
            last = self._observation(last)
            self.last_actions[done] = self.form.first
            for index in np.flatnonzero(done).tolist():
                infos[index] = {
                    "terminal_observation": last[index],
                    "TimeLimit.truncated": bool(truncated[index]),
                    "episode": {name: kind(episode[name][index]) for name, kind in _ENDS},
                }
        return self._observation(features), rewards.astype(np.float32), done, infos

    def gains(self) -> FloatArray:
        """Returns the gain of every choice now: tokens less the price of their time, `float64[num_envs, choices]`.

        A replay knows the gains of all choices, not only of the one that is taken. Choices are those of `all_choices`.

        Raises:
            UnrecordedError, UnmeasuredError: see `ReplayVectorEnv.preview`.
        """
        shape = (self.num_envs, len(self.all_choices))
        last = np.broadcast_to(self.last_actions[:, None], (*shape, self.last_actions.shape[1]))
        choices = np.broadcast_to(self.all_choices, (*shape, self.all_choices.shape[1]))
        costs = ObservedCosts(*(values[:, None] for values in self.envs.costs()))  # [num_envs, 1]
        return self.envs.preview(self.form.actions(last, choices, costs))

    def close(self) -> None:
        """Closes the vector environment."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Returns an attribute of the vector environment, once for each of `indices`. Raises `AttributeError`."""
        return [getattr(self.envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute of the vector environment. Raises `ParameterError` for a part of the episodes."""
        self._check_all(indices)
        setattr(self.envs, attr_name, value)

    def env_method(self, method_name: str, *arguments: Any, indices: VecEnvIndices = None, **options: Any) -> list[Any]:
        """Calls a method of the vector environment once and returns its result for each episode.

        Raises `ParameterError` for a part of the episodes.
        """
        self._check_all(indices)
        return [getattr(self.envs, method_name)(*arguments, **options)] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Returns whether each episode does what a wrapper does: the infos are those of a ``Monitor``."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def _observation(self, features: FeatureVector) -> FeatureVector:
        if self.form.extra_names:
            features = np.concatenate([features, self.form.extra(self.last_actions)], axis=1)
        if self._hidden.size:
            features = features.copy()
            features[:, self._hidden] = 0
        return features

    def _check_all(self, indices: VecEnvIndices) -> None:
        if sorted(self._get_indices(indices)) != list(range(self.num_envs)):
            raise ParameterError(
                f"These episodes share all their attributes and methods: expected indices=None; got {indices}."
            )


class HoldOutVectorEnv(ReplayVectorEnv):
    """A `ReplayVectorEnv` whose episodes are drawn from some of its machines only.

    Attributes:
        machines: indices of the profiles that episodes are drawn from, `int64[n]`, to be set before the first reset.
    """

    machines: IntArray

    def _draw_profiles(self, count: int) -> IntArray:
        return self.np_random.choice(self.machines, size=count)


class Throughput(NamedTuple):
    """Throughput of a policy on several machines [tokens per plain step]."""

    by_profile: list[float]
    """over all texts"""
    by_mode: list[list[float | None]]
    """of greedy texts and of sampled texts, by profile; None where there are none"""
    score: float
    """the geometric mean over the profiles that count, by which policies are chosen"""


class PlayedEpisodes(NamedTuple):
    """The outcomes of n whole episodes, each a text on a machine, as arrays of length n."""

    text: IntArray
    """index of the text among `replays.texts`"""
    profile: IntArray
    """index of the machine"""
    tokens: IntArray
    """committed tokens"""
    accepted: IntArray
    """draft tokens among them"""
    drafted: IntArray
    """verified nodes"""
    rounds: IntArray
    """rounds played"""
    seconds: FloatArray
    """predicted times [s]"""
    plain_steps: FloatArray
    """the same times [plain steps]"""


class Validation:
    """Plays every text of a split on every machine, to measure the throughput of a policy.

    Args:
        trace: holds the texts.
        profiles: the machines.
        form: the form of actions.
        without: groups of features that are hidden.
        split: split of the texts.
        counted: indices of the profiles that the score counts; all if None.
        options: `grid` and `observes_draft` of `ReplayVectorEnv`.

    Raises:
        TraceError, UnrecordedError, ParameterError: see `ReplayVectorEnv`.
    """

    def __init__(
        self,
        trace: Trace,
        profiles: Sequence[ProfileSource],
        form: ActionForm,
        *,
        without: Sequence[str] = (),
        split: str = "validation",
        counted: IntArray | None = None,
        **options: Any,
    ) -> None:
        count = len(profiles) * len(choose_texts(trace.texts, split))
        envs = ReplayVectorEnv(count, traces=trace, profile=profiles, split=split, **options)
        self.envs, self.counted = ReplayVecEnv(envs, form, without), counted

    def __call__(self, act: Act) -> Throughput:
        """Measures the throughput of a policy. Raises as `ReplayVectorEnv.step` does."""
        replays = self.envs.envs.replays
        sums = np.zeros((2, len(replays.profiles), 2))
        add_by_machine(sums, self.play(act)._asdict(), replays.greedy)
        by_profile = sums[0].sum(axis=1) / sums[1].sum(axis=1)
        pairs = np.moveaxis(sums, 0, -1).tolist()  # [profiles, modes, 2]
        by_mode = [[tokens / time if tokens else None for tokens, time in row] for row in pairs]
        counted = by_profile if self.counted is None else by_profile[self.counted]
        return Throughput(by_profile.tolist(), by_mode, float(np.exp(np.log(counted).mean())))

    def play(self, act: Act) -> PlayedEpisodes:
        """Plays every text on every machine. Raises as `ReplayVectorEnv.step` does."""
        envs, replays = self.envs, self.envs.envs.replays
        profile, text = np.divmod(np.arange(envs.num_envs), len(replays.texts))
        envs.set_options({"texts": text, "profiles": profile})
        observations, first = envs.reset(), np.ones(envs.num_envs, np.bool_)
        running = first.copy()
        totals: dict[str, Any] = dict.fromkeys(PlayedEpisodes._fields[2:], 0)
        while running.any():
            observations, _, first, _ = envs.step(act(observations, first))
            outcomes = envs.info | {"rounds": np.ones(envs.num_envs, np.int64)}
            totals = {name: total + np.where(running, outcomes[name], 0) for name, total in totals.items()}
            running &= ~first
        return PlayedEpisodes(text, profile, **totals)


def add_by_machine(sums: FloatArray, played: Mapping[str, Any], greedy: BoolArray) -> None:
    """Adds tokens and time of rounds or of episodes to their sums, in place.

    Args:
        sums: tokens, then time, by profile and mode, greedy before sampled, `float64[2, profiles, 2]`.
        played: `text`, `profile`, `tokens` and `plain_steps`, as in the info of `ReplayVectorEnv.step`.
        greedy: whether each text is greedy, `bool[texts]`.
    """
    where = played["profile"], np.where(greedy[played["text"]], 0, 1)
    np.add.at(sums[0], where, played["tokens"])
    np.add.at(sums[1], where, played["plain_steps"])

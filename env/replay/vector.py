"""Many replays stepped together in NumPy, as one Gymnasium vector environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from specgym.env.common.arrays import BoolArray, FloatArray, IntArray
from specgym.env.common.errors import ParameterError, UnknownNameError, check_limit
from specgym.env.gym.features import FEATURES, FeatureVector, ObservedCosts
from specgym.env.gym.grid import ActionSpace, ParameterGrid
from specgym.env.gym.speculation import check_observable, check_time_price
from specgym.env.latency.latency_profile import LatencyProfile
from specgym.env.replay.episodes import EpisodeStates, ReplayTables
from specgym.env.replay.sources import ProfileSource, TraceSource, choose_texts, find_profile, find_trace
from specgym.env.replay.tables.player import Episodes
from specgym.env.replay.traces.file import Trace

VectorStep: TypeAlias = "tuple[FeatureVector, FloatArray, BoolArray, BoolArray, dict[str, Any]]"
"""observations, rewards, terminations, truncations and infos"""
Price: TypeAlias = "float | FloatArray"
"""of time: one for all, or by latency profile and mode (greedy, sampled) [tokens per plain step]"""
_EPISODE = ("r", "l", "tokens", "plain_steps")
"""sums of an episode, the first two by Gymnasium's names: reward and rounds"""


class ReplayVectorEnv(VectorEnv[FeatureVector, IntArray, Any]):
    """Many episodes of ``specgym/Replay-v0`` side by side, each as `ReplaySpeculation` plays it.

    ## Episodes
    Texts come in a random order, and all of them before any comes again, whichever episode takes it. Each episode is
    played on a machine of its own, drawn from the profiles. A seed decides both.

    An episode that ends is followed by the next one in the same step. The observation is then the first of the new
    episode. The last one of the old episode is in ``info["final_obs"]``.

    With `AutoresetMode.NEXT_STEP` the next episode begins in the next step. That step ignores its action, and its
    reward is 0.

    ## Speed
    The outcome of an action is computed where it is taken, in a few microseconds of compiled code. Nothing is kept, so
    memory does not grow. `tabulate_all` tabulates all actions at all roots, on all cores, and keeps the tables in the
    cache. From then on a step is a few table look-ups, several times as fast.

    ## Info
    Every entry has one value an episode. An entry with a leading `_` says which episodes have it, as in Gymnasium's
    own vector environments.

    - Of a step: `tokens`, `accepted`, `drafted`, `depth`, `seconds` and `plain_steps` (the same time in plain rounds).
    - Of a step and of a reset: `text` and `profile`, the numbers of what was played.
    - If any episode ended: `final_obs`, arrays or None, and `final_info` with the entries of its last step. There
      `episode` holds sums of the whole episode: `r` (reward), `l` (rounds), `tokens` and `plain_steps`. With
      `AutoresetMode.NEXT_STEP` there is neither, as in Gymnasium: observation and info are the episode's last ones.

    Args:
        num_envs: episodes that are stepped together.
        traces: see `ReplaySpeculation`.
        profile: see `ReplaySpeculation`; or several profiles, one of which is drawn for every episode.
        split: see `ReplaySpeculation`.
        temperature: see `ReplaySpeculation`.
        grid: see `ReplaySpeculation`.
        lam: price of time, see `SpeculationEnv`, or prices as `set_lam` takes them.
        observes_draft: see `SpeculationEnv`.
        autoreset_mode: when the next episode begins: `AutoresetMode.SAME_STEP` or `AutoresetMode.NEXT_STEP`.

    Attributes:
        replays: texts and tables.
        grid: what actions stand for.
        lam: price of time, or the prices [tokens per plain step].

    Raises:
        ParameterError, TraceError, ProfileError, UnknownNameError: as in `ReplaySpeculation`.
        LimitError: `num_envs` is not positive.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012 as in gym

    def __init__(
        self,
        num_envs: int = 1,
        *,
        traces: TraceSource | None = None,
        profile: ProfileSource | Sequence[ProfileSource] | None = None,
        split: str | None = "train",
        temperature: float | None = None,
        grid: ActionSpace | None = None,
        lam: Price = 1.0,
        observes_draft: bool = True,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        check_limit("num_envs", num_envs)
        if autoreset_mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
            raise ParameterError(f"Expected autoreset_mode to be SAME_STEP or NEXT_STEP; got {autoreset_mode}.")
        self.metadata = self.metadata | {"autoreset_mode": autoreset_mode}
        self._same_step = autoreset_mode is AutoresetMode.SAME_STEP
        profiles = _profiles(profile)
        self._lam, self._prices = lam, _prices(lam, len(profiles))
        trace = find_trace(traces)
        trace = Trace(trace.path, trace.header, choose_texts(trace.texts, split, temperature))
        self.grid: ActionSpace = ParameterGrid().covered(trace.header.rule) if grid is None else grid
        if observes_draft:
            check_observable(self.grid)
        self.num_envs = num_envs
        self.single_observation_space = gym.spaces.Box(0.0, 1.0, (len(FEATURES),), np.float32)
        self.single_action_space = gym.spaces.MultiDiscrete(self.grid.nvec)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.replays = ReplayTables(trace, profiles, self.grid, observes_draft)
        self.states = EpisodeStates(self.replays, num_envs)
        self._totals = np.zeros((4, num_envs))  # of the episodes under way, see `_EPISODE`
        self._ended = np.zeros(num_envs, np.bool_)  # episodes whose next step begins another one
        self._order: IntArray = np.empty(0, np.int64)
        self._begun = False

    @property
    def lam(self) -> Price:
        """See the class."""
        return self._lam

    @lam.setter
    def lam(self, lam: Price) -> None:
        self._lam, self._prices = lam, _prices(lam, len(self.replays.profiles))

    def set_lam(self, lam: Price) -> None:
        """Sets the price of time for the steps to come [tokens per plain step].

        Args:
            lam: one price for all, or one for every latency profile and mode, greedy before sampled,
                `float[profiles, 2]`.

        Raises:
            ParameterError: a price that is negative or not finite, or an array of another shape.
        """
        self.lam = lam

    def tabulate_all(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Tabulates all actions, on all cores or from the cache, so that no step has to.

        Args:
            progress: called with the sets of tree parameters that are done, and how many there are.

        Raises:
            UnrecordedError, UnmeasuredError: a trace or a profile does not cover the grid.
        """
        choices = len(self.replays.table.choices)
        self.replays.tabulate_all(lambda done: progress(done, choices))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FeatureVector, dict[str, Any]]:
        """Begins all episodes.

        Args:
            seed: begins a new order of texts and machines.
            options: ``{"texts": numbers}``, `int[num_envs]`, says which of `replays.texts` to begin with, and
                ``{"profiles": numbers}`` on which of the profiles.

        Raises:
            UnknownNameError: an unknown option.
            ParameterError: unknown numbers of texts or profiles, or not one for each episode.
        """
        super().reset(seed=seed)
        options = options or {}
        for name in options.keys() - {"texts", "profiles"}:
            raise UnknownNameError("option of reset", name, ["texts", "profiles"])
        if seed is not None:
            self._order = np.empty(0, np.int64)
        texts = self._picked(options, "texts", len(self.replays.texts))
        profiles = self._picked(options, "profiles", len(self.replays.profiles))
        self._begin(np.arange(self.num_envs), texts, profiles)
        self.replays.table.prepare()
        self._begun, self._ended[:] = True, False
        return self.states.observe(), _masked(self._played(), ~self._ended)

    def step(self, actions: npt.ArrayLike) -> VectorStep:
        """Plays a round of every episode, and begins the next one of those that end.

        Args:
            actions: of the grid, `int[num_envs, 6]`.

        Raises:
            ResetNeeded: before the first reset.
            ParameterError: an action that is not on the grid, or not one for each episode.
            UnrecordedError, UnmeasuredError: a trace or a profile does not cover an action. No round is played then.
        """
        if not self._begun:
            raise ResetNeeded("There are no episodes under way: call reset() before step().")
        if np.shape(actions) != self.action_space.shape:
            raise ParameterError(
                f"Expected actions of shape {self.action_space.shape}, one for each episode; got {np.shape(actions)}."
            )
        playing = np.flatnonzero(~self._ended) if self._ended.any() else slice(None)
        price, plain_seconds = self._price()[playing], self.states.plain_seconds[playing]
        rounds = self.states.act(np.asarray(actions)[playing], playing)
        steps = {name: getattr(rounds, name) for name in ("tokens", "accepted", "drafted", "seconds")}
        steps |= {"depth": self.states.depth[playing].copy(), "plain_steps": rounds.seconds / plain_seconds}
        rewards = self._spread(rounds.tokens - price * steps["plain_steps"], playing)
        info: dict[str, Any] = {name: self._spread(values, playing) for name, values in steps.items()}
        if self._ended.any():
            self._begin_drawn(np.flatnonzero(self._ended))
        self._totals += np.stack([rewards, ~self._ended, info["tokens"], info["plain_steps"]])
        info = _masked(info, ~self._ended) | _masked(self._played(), np.ones(self.num_envs, np.bool_))
        observations = self.states.observe()
        terminated, truncated = self.states.ends()
        done = terminated | truncated
        if done.any() and self._same_step:
            self._finish(observations, done, info)
        self._ended = done & (not self._same_step)
        return observations, rewards, terminated, truncated, info

    def preview(self, actions: IntArray) -> FloatArray:
        """Returns the rewards of several actions in the present state; none is taken, `float64[num_envs, actions]`.

        Args:
            actions: of the grid, as many for every episode, `int[num_envs, actions, 6]`.

        Raises:
            ParameterError, UnrecordedError, UnmeasuredError: see `step`.
        """
        rounds, shape = self.states.preview(actions), actions.shape[:2]
        spent = self._price()[:, None] * (rounds.seconds.reshape(shape) / self.states.plain_seconds[:, None])
        return np.asarray(rounds.tokens.reshape(shape) - spent)

    def costs(self) -> ObservedCosts:
        """Returns the costs in the current observations, arrays of `[num_envs]`."""
        return self.states.costs()

    def _price(self) -> FloatArray:
        """The price of every episode's time, `float64[num_envs]` [tokens per plain step]."""
        sampled = np.where(self.replays.greedy[self.states.text], 0, 1)
        return np.asarray(self._prices[self.states.profile, sampled])

    def _finish(self, observations: FeatureVector, done: BoolArray, info: dict[str, Any]) -> None:
        """Adds the episodes that are done to `info`, begins the next ones and puts their observations in place."""
        which, last = np.flatnonzero(done), np.full(self.num_envs, None, object)
        for index, ended in zip(which.tolist(), observations[which], strict=True):
            last[index] = ended
        steps = {name: np.where(done, values, 0) for name, values in info.items() if not name.startswith("_")}
        episode = {name: np.where(done, total, 0) for name, total in zip(_EPISODE, self._totals, strict=True)}
        episode["l"] = episode["l"].astype(np.int64)
        info |= _masked({"final_obs": last, "final_info": steps | {"episode": episode}}, done)
        self._begin_drawn(which)
        observations[which] = self.states.observe(which)

    def _spread(self, values: npt.NDArray[Any], playing: Episodes) -> npt.NDArray[Any]:
        """Returns values of all episodes, of those that are playing."""
        if isinstance(playing, slice):
            return values
        every = np.zeros(self.num_envs, values.dtype)
        every[playing] = values
        return every

    def _begin_drawn(self, which: IntArray) -> None:
        self._begin(which, self._draw_texts(len(which)), self._draw_profiles(len(which)))

    def _begin(self, which: IntArray, texts: IntArray, profiles: IntArray) -> None:
        self.states.begin_on(which, texts, profiles)
        self._totals[:, which] = 0

    def _draw_texts(self, count: int) -> IntArray:
        while len(self._order) < count:
            self._order = np.concatenate([self._order, self.np_random.permutation(len(self.replays.texts))])
        drawn, self._order = self._order[:count], self._order[count:]
        return drawn

    def _draw_profiles(self, count: int) -> IntArray:
        return self.np_random.integers(len(self.replays.profiles), size=count)

    def _picked(self, options: dict[str, Any], name: str, count: int) -> IntArray:
        """The numbers of an option, or drawn ones."""
        if name not in options:
            return self._draw_texts(self.num_envs) if name == "texts" else self._draw_profiles(self.num_envs)
        numbers = np.asarray(options[name])
        right = numbers.shape == (self.num_envs,) and np.issubdtype(numbers.dtype, np.integer)
        if not right or (numbers < 0).any() or (numbers >= count).any():
            raise ParameterError(
                f"Expected {name} as {self.num_envs} numbers within 0 and {count - 1}; got {options[name]!r}."
            )
        return numbers.astype(np.int64)

    def _played(self) -> dict[str, Any]:
        return {"text": self.states.text.copy(), "profile": self.states.profile.copy()}


def _masked(values: dict[str, Any], mask: BoolArray) -> dict[str, Any]:
    """Returns an info with `_name` beside each name: which episodes have the entry. All names share one mask."""
    masked: dict[str, Any] = {}
    for name, value in values.items():
        masked[name] = _masked(value, mask) if isinstance(value, dict) else value
        masked[f"_{name}"] = mask
    return masked


def _profiles(profile: ProfileSource | Sequence[ProfileSource] | None) -> list[LatencyProfile]:
    """The named machines, at least one. Raises as `find_profile`, and `ParameterError` for an empty list."""
    if profile is None or isinstance(profile, str | PathLike | LatencyProfile):
        return [find_profile(profile)]
    if not profile:
        raise ParameterError("Expected one latency profile or more; got an empty list.")
    return [find_profile(source) for source in profile]


def _prices(lam: Price, profiles: int) -> FloatArray:
    """The price of every profile and mode, `float64[profiles, 2]`. Raises `ParameterError`."""
    prices = np.asarray(lam, np.float64)
    if prices.ndim and prices.shape != (profiles, 2):
        raise ParameterError(
            f"Expected lam as one number, or as an array of shape {(profiles, 2)}, by latency profile and "
            f"mode (greedy, sampled); got one of shape {prices.shape}."
        )
    for price in prices.flat:
        check_time_price(float(price))
    return np.broadcast_to(prices, (profiles, 2))

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
from specgym.env.common.errors import ParameterError, UnknownNameError
from specgym.env.gym.features import FEATURES, FeatureVector
from specgym.env.gym.grid import ParameterGrid
from specgym.env.gym.speculation import check_observable, check_price
from specgym.env.latency.latency_profile import LatencyProfile
from specgym.env.replay.episodes import EpisodeStates, ReplayTables
from specgym.env.replay.sources import ProfileSource, TraceSource, choose_texts, find_profile, find_trace
from specgym.env.replay.tabulation import covered_grid
from specgym.env.tree.rounds import check_limit

VectorStep: TypeAlias = "tuple[FeatureVector, FloatArray, BoolArray, BoolArray, dict[str, Any]]"
"""observations, rewards, terminations, truncations and infos"""
Price: TypeAlias = "float | FloatArray"
"""of time: one for all, or by latency profile and way of decoding [tokens per plain step]"""


class ReplayVectorEnv(VectorEnv[FeatureVector, IntArray, Any]):
    """Many episodes of ``specgym/Replay-v0`` side by side, each what `ReplaySpeculation` makes of it.

    ## Episodes
    Texts come in a random order, every one of them before any comes again, whichever of the episodes takes it. Each
    episode is played on a machine of its own, drawn from the profiles. A seed decides both.

    An episode that ends is followed by the next one in the same step: the observation is the new one's first, and the
    last one's own is among ``info["final_obs"]``.

    ## Speed
    What an action brings is tabulated at all roots at once when it is first taken, which takes a while; from then on a
    step is a few table look-ups. `tabulate_all` does so for all actions.

    ## Info
    Of a step `tokens`, `accepted`, `drafted`, `depth`, `seconds`, `plain_steps` (the same time in plain rounds), `text`
    and `profile` (numbers of what was played); if any episode ended, `final_obs` and ``final_info["episode"]``, with
    `rounds`, `tokens`, `plain_steps` and `reward` of those whole episodes. Every entry has one value an episode, and
    ``info["_final_obs"]`` tells who ended. Of a reset only `text` and `profile`.

    Args:
        num_envs: episodes that are stepped together.
        traces: see `ReplaySpeculation`.
        profile: likewise, or several profiles, one of which is drawn for every episode.
        split: likewise.
        temperature: likewise.
        grid: likewise.
        lam: price of time, see `SpeculationEnv`, or prices as `set_lam` takes them, which changes them.
        observes_draft: see `SpeculationEnv`.

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
        grid: ParameterGrid | None = None,
        lam: Price = 1.0,
        observes_draft: bool = True,
    ) -> None:
        check_limit("num_envs", num_envs)
        profiles = _profiles(profile)
        self._prices = _prices(lam, len(profiles))
        self._lam = lam
        trace = find_trace(traces)
        texts = choose_texts(trace.texts, split, temperature)
        self.grid = covered_grid(trace.header) if grid is None else grid
        if observes_draft:
            check_observable(self.grid)
        self.num_envs = num_envs
        self.single_observation_space = gym.spaces.Box(0.0, 1.0, (len(FEATURES),), np.float32)
        self.single_action_space = gym.spaces.MultiDiscrete(self.grid.nvec)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.replays = ReplayTables(texts, trace.header, profiles, self.grid, observes_draft)
        self.rollouts = EpisodeStates(self.replays, num_envs)
        self._totals = np.zeros((4, num_envs))  # of the episodes under way: rounds, tokens, plain steps, reward
        self._order: IntArray = np.empty(0, np.int64)
        self._begun = False

    @property
    def lam(self) -> Price:
        """See the class."""
        return self._lam

    @lam.setter
    def lam(self, lam: Price) -> None:
        self._prices = _prices(lam, len(self.replays.profiles))
        self._lam = lam

    def set_lam(self, lam: Price) -> None:
        """Sets the price of time for the steps to come [tokens per plain step].

        Args:
            lam: a price for all, or, since throughput differs, one for every latency profile and way of decoding,
                greedy before sampled, `float[profiles, 2]`.

        Raises:
            ParameterError: a price that is negative or not finite, or not as many as said.
        """
        self.lam = lam

    def tabulate_all(self, progress: Callable[[int, int], None] = lambda done, all_of_them: None) -> None:
        """Works out all that any action may bring, so that no step has to.

        Args:
            progress: told how many sets of tree parameters are done, and how many there are.

        Raises:
            UnrecordedError, UnmeasuredError: a trace or a profile does not cover the grid.
        """
        table = self.replays.table
        table.tabulate_all(lambda done: progress(done, len(table.choices)))
        self.replays.choose(np.zeros((1, len(self.grid.nvec)), np.int64))  # takes note of the outcomes

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FeatureVector, dict[str, Any]]:
        """Begins an episode each.

        Args:
            seed: begins a new order of texts and machines.
            options: ``{"texts": numbers}``, `int[num_envs]`, says which of `replays.texts` to begin with, and
                ``{"profiles": numbers}`` on which of the profiles.

        Raises:
            UnknownNameError: an option that there is none of.
            ParameterError: numbers of texts or profiles that there are none of, or not one for each episode.
        """
        super().reset(seed=seed)
        options = options or {}
        for name in options:
            if name not in ("texts", "profiles"):
                raise UnknownNameError("option of reset", name, ["texts", "profiles"])
        if seed is not None:
            self._order = np.empty(0, np.int64)
        texts = self._picked(options, "texts", len(self.replays.texts))
        profiles = self._picked(options, "profiles", len(self.replays.profiles))
        self._begin(np.arange(self.num_envs), texts, profiles)
        self._begun = True
        return self.rollouts.observe(), self._whereabouts()

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
        rounds = self.rollouts.play(actions)
        rewards = rounds.tokens - self._price() * rounds.plain_steps
        self._totals += np.stack([np.ones(self.num_envs), rounds.tokens, rounds.plain_steps, rewards])
        terminated, truncated = self.rollouts.ends()
        info = {name: getattr(rounds, name) for name in rounds.__dataclass_fields__} | self._whereabouts()
        seen, done = self.rollouts.observe(), terminated | truncated
        if done.any():
            seen = self._go_on(seen, done, info)
        return seen, rewards, terminated, truncated, info

    def foresee(self, actions: IntArray) -> FloatArray:
        """The rewards that several actions would bring now, of which none is taken, `float64[num_envs, actions]`.

        Args:
            actions: of the grid, as many for every episode, `int[num_envs, actions, 6]`.

        Raises:
            ParameterError, UnrecordedError, UnmeasuredError: see `step`.
        """
        rounds, shape = self.rollouts.foresee(actions), actions.shape[:2]
        spent = self._price()[:, None] * rounds.plain_steps.reshape(shape)
        return np.asarray(rounds.tokens.reshape(shape) - spent)

    def _price(self) -> FloatArray:
        """Of every episode's time, `float64[num_envs]` [tokens per plain step]."""
        sampled = np.where(self.replays.greedy[self.rollouts.text], 0, 1)
        return np.asarray(self._prices[self.rollouts.profile, sampled])

    def _go_on(self, seen: FeatureVector, done: BoolArray, info: dict[str, Any]) -> FeatureVector:
        """Begins the next episodes of those that are done, tells `info` of these, and returns what is seen then."""
        rounds, tokens, plain_steps, reward = np.where(done, self._totals, 0.0)
        episode = {"rounds": rounds, "tokens": tokens, "plain_steps": plain_steps, "reward": reward}
        info |= {"final_obs": seen, "_final_obs": done, "final_info": {"episode": episode}, "_final_info": done}
        which = np.flatnonzero(done)
        self._begin(which, self._draw_texts(len(which)), self._draw_profiles(len(which)))
        return self.rollouts.observe()

    def _begin(self, which: IntArray, texts: IntArray, profiles: IntArray) -> None:
        self.rollouts.begin(which, texts, profiles)
        self._totals[:, which] = 0

    def _draw_texts(self, count: int) -> IntArray:
        while len(self._order) < count:
            self._order = np.concatenate([self._order, self.np_random.permutation(len(self.replays.texts))])
        drawn, self._order = self._order[:count], self._order[count:]
        return drawn

    def _draw_profiles(self, count: int) -> IntArray:
        return self.np_random.integers(len(self.replays.profiles), size=count)

    def _picked(self, options: dict[str, Any], name: str, there: int) -> IntArray:
        """The numbers of an option, or drawn ones."""
        if name not in options:
            return self._draw_texts(self.num_envs) if name == "texts" else self._draw_profiles(self.num_envs)
        numbers = np.asarray(options[name])
        right = numbers.shape == (self.num_envs,) and np.issubdtype(numbers.dtype, np.integer)
        if not right or (numbers < 0).any() or (numbers >= there).any():
            raise ParameterError(
                f"Expected {name} as {self.num_envs} numbers within 0 and {there - 1}; got {options[name]!r}."
            )
        return numbers.astype(np.int64)

    def _whereabouts(self) -> dict[str, Any]:
        return {"text": self.rollouts.text.copy(), "profile": self.rollouts.profile.copy()}


def _profiles(profile: ProfileSource | Sequence[ProfileSource] | None) -> list[LatencyProfile]:
    """The machines that are named, one or several. Raises as `find_profile`, and `ParameterError` if there is none."""
    if profile is None or isinstance(profile, str | PathLike | LatencyProfile):
        return [find_profile(profile)]
    if not profile:
        raise ParameterError("Expected one latency profile or more; got an empty list.")
    return [find_profile(each) for each in profile]


def _prices(lam: Price, profiles: int) -> FloatArray:
    """The price of every profile and way of decoding, `float64[profiles, 2]`. Raises `ParameterError`."""
    prices = np.asarray(lam, np.float64)
    if prices.ndim and prices.shape != (profiles, 2):
        raise ParameterError(
            f"Expected lam as one number, or as an array of shape {(profiles, 2)}, by latency profile and way of "
            f"decoding; got one of shape {prices.shape}."
        )
    for price in prices.flat:
        check_price(float(price))
    return np.broadcast_to(prices, (profiles, 2))

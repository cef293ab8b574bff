"""What decides how a policy is learned."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from specgym.agents.learning.envs import ObservationView
from specgym.agents.policies.action_forms import FORMS, make_form
from specgym.agents.policies.corrections import CORRECTIONS, covered_prices
from specgym.agents.policies.observation_groups import columns_of
from specgym.env.common.errors import ParameterError, UnknownNameError
from specgym.env.gym.grid import ParameterGrid
from specgym.env.replay.traces.records import TraceHeader
from specgym.env.tree.rounds import check_limit

ALGORITHMS = ("ppo", "recurrent_ppo", "hindsight")

_GRID = ParameterGrid(
    base_depth=(0, 1, 2, 3, 4, 6, 8, 10),
    high_confidence=(0.5, 0.8, 0.95),
    early_stop=(0.05, 0.1, 0.2, 0.3, 0.5),
    branch=(0,),
)


@dataclass(frozen=True)
class LearningConfig:
    """The settings of the algorithm.

    Raises:
        LimitError: a count that is not positive.
        ParameterError: another value outside its range, or numbers that do not go together.
    """

    episodes: int = 256
    """episodes that are stepped together"""
    rounds: int = 32
    """rounds of each of them between two updates [rounds]"""
    minibatch: int = 2048
    """rounds that a gradient is made of [rounds]"""
    epochs: int = 4
    """times that every round is learned from"""
    learning_rate: float = 1e-3
    """Adam's learning rate at the beginning; it falls linearly to a tenth"""
    discount: float = 0.95
    """weight of the next round's reward relative to this one's"""
    trace_decay: float = 0.9
    """decay of generalised advantage estimation"""
    clip: float = 0.2
    """how far the odds of a choice may move between two batches of rounds"""
    entropy: float = 0.01
    """weight of the entropy bonus at the beginning; it falls linearly to 0"""
    hidden: tuple[int, ...] = (64, 64)
    """units of each layer, of the policy as of the value"""
    memory: int = 64
    """units of the memory of recurrent_ppo"""
    price_decay: float = 0.9
    """how much of what the prices of time are measured by is kept from one batch of rounds to the next"""

    def __post_init__(self) -> None:
        for name in ("episodes", "rounds", "minibatch", "epochs", "memory"):
            check_limit(f"config.{name}", getattr(self, name))
        for units in self.hidden:
            check_limit("config.hidden", units)
        for name in ("discount", "trace_decay", "price_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ParameterError(f"config.{name} must be 0 or more and under 1; got {getattr(self, name)}.")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ParameterError(f"config.{name} must be over 0; got {getattr(self, name)}.")
        if not 0 <= self.entropy < math.inf:
            raise ParameterError(f"config.entropy must be 0 or more; got {self.entropy}.")
        if self.batch % self.minibatch:
            raise ParameterError(
                f"config.minibatch must divide config.episodes * config.rounds = {self.batch}; got {self.minibatch}."
            )

    @property
    def batch(self) -> int:
        """Rounds between two updates."""
        return self.episodes * self.rounds


@dataclass(frozen=True)
class LearningPlan:
    """Everything that decides what is learned, but for the texts, the machines and the seed.

    Raises:
        LimitError: a count that is not positive.
        ParameterError: fewer drawn machines than none.
        UnknownNameError: an algorithm, a form or a group of the observation that there is none of.
    """

    algorithm: Literal["ppo", "recurrent_ppo", "hindsight"] = "ppo"
    """proximal policy optimisation, the same with a memory (needs the extra "recurrent"), or policy gradients over all
    choices at once"""
    form: Literal["absolute", "increments", "corrections"] = "absolute"
    """what the policy chooses: values of the grid, Phase 3's steps from the last ones, or corrections of goodput, which
    have a grid of their own"""
    observes_draft: bool = False
    """whether the draft is asked about the root before every choice, which costs its first forward even where the
    policy would rather not draft"""
    drawn_machines: int = 0
    """machines drawn at random that are learned on besides those that are named, so that what is learned holds between
    and beyond them; nothing is judged on them"""
    blind: tuple[str, ...] = ()
    """groups of the observation that are taken away: position, sampling, lookup, draft, last_round, history, machine"""
    steps: int = 2_000_000
    """rounds that are played in all, rounded up to whole batches [rounds]"""
    looks: int = 25
    """parts that training is divided into: after each, the policy is judged on the validation split and saved"""
    grid: ParameterGrid = field(default_factory=lambda: _GRID)
    """the actions"""
    config: LearningConfig = field(default_factory=LearningConfig)
    """the algorithm's settings"""

    def __post_init__(self) -> None:
        check_limit("steps", self.steps)
        check_limit("looks", self.looks)
        columns_of(self.blind)
        if self.drawn_machines < 0:
            raise ParameterError(f"drawn_machines must be 0 or more; got {self.drawn_machines}.")
        for name, known in (("algorithm", ALGORITHMS), ("form", FORMS)):
            if getattr(self, name) not in known:
                raise UnknownNameError(name, getattr(self, name), known)

    @property
    def part(self) -> int:
        """Rounds of one of the `looks` parts: whole batches."""
        return self.config.batch * math.ceil(self.steps / self.looks / self.config.batch)

    @property
    def memory(self) -> int:
        """Units of the policy's memory; 0 for none."""
        return self.config.memory if self.algorithm == "recurrent_ppo" else 0

    def grid_for(self, header: TraceHeader) -> ParameterGrid:
        """The actions on a trace: `grid`, or where choices are corrections the prices that the trace covers."""
        return covered_prices(header) if self.form == CORRECTIONS else self.grid

    def lens(self, grid: ParameterGrid) -> ObservationView:
        """What a policy sees and chooses, on the grid of `grid_for`."""
        return ObservationView(make_form(self.form, grid), self.blind)

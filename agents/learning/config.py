"""The settings of a training run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from specgym.agents.policies.action_forms import FORMS
from specgym.env.common.errors import ParameterError, UnknownNameError, check_limit
from specgym.env.gym.features import feature_columns
from specgym.env.gym.grid import ParameterGrid

Algorithm = Literal["ppo", "recurrent_ppo", "all_actions"]

_GRID = ParameterGrid(
    base_depth=(0, 1, 2, 3, 4, 6, 8, 10),
    high_confidence=(0.5, 0.8, 0.95),
    early_stop=(0.05, 0.1, 0.2, 0.3, 0.5),
    branch=(0,),
)
_STORED = {"without": "blind", "evaluations": "looks", "all_actions": "hindsight"}  # names in files


@dataclass(frozen=True)
class LearningConfig:
    """The settings of the algorithm.

    Raises:
        LimitError: a count that is not positive.
        ParameterError: another value outside its range, or a minibatch that does not divide a batch.
    """

    episodes: int = 256
    """episodes that are stepped together"""
    rounds: int = 32
    """rounds of each episode between two updates [rounds]"""
    minibatch: int = 2048
    """rounds for one gradient step [rounds]"""
    epochs: int = 4
    """passes over the rounds of an update"""
    learning_rate: float = 1e-3
    """Adam's learning rate at the start; it falls linearly to a tenth"""
    discount: float = 0.95
    """weight of the next round's reward relative to this round's"""
    trace_decay: float = 0.9
    """decay of generalised advantage estimation (lambda)"""
    clip: float = 0.2
    """bound on the change of a choice's probability ratio in one update"""
    entropy: float = 0.01
    """weight of the entropy bonus at the start; it falls linearly to 0"""
    hidden: tuple[int, ...] = (64, 64)
    """units of each layer, in the policy and in the value network"""
    memory: int = 64
    """units of the memory of recurrent_ppo"""
    price_decay: float = 0.9
    """share of the sums behind the prices of time that is kept at an update"""

    def __post_init__(self) -> None:
        for name in ("episodes", "rounds", "minibatch", "epochs", "memory"):
            check_limit(f"config.{name}", getattr(self, name))
        check_limit("config.hidden", min(self.hidden, default=1))
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
    """Everything that decides what is learned, except the texts, the machines and the seed.

    Raises:
        LimitError: a count that is not positive.
        ParameterError: a negative number of drawn machines.
        UnknownNameError: an unknown algorithm, form or group of features.
    """

    algorithm: Algorithm = "ppo"
    """proximal policy optimisation, the same with a memory (needs the extra "recurrent"), or regression on the gains of
    all actions at once"""
    form: Literal["absolute", "increments", "corrections"] = "absolute"
    """what the policy chooses: values of the grid, Phase 3's steps from the last action, or corrections of goodput,
    which have a grid of their own"""
    observes_draft: bool = False
    """whether the policy reads the draft's probabilities at the root, which costs the draft's first forward in every
    round"""
    drawn_machines: int = 0
    """random machines to learn on besides the named ones, so that the policy generalises; it is not validated on
    them"""
    without: tuple[str, ...] = ()
    """groups of features to hide: position, sampling, lookup, draft, last_round, history, machine"""
    steps: int = 2_000_000
    """rounds to play in all, rounded up to whole batches [rounds]"""
    evaluations: int = 25
    """parts of the training; after each, the policy is evaluated on the validation split and saved"""
    grid: ParameterGrid = field(default_factory=lambda: _GRID)
    """the action space"""
    config: LearningConfig = field(default_factory=LearningConfig)
    """the algorithm's settings"""

    def __post_init__(self) -> None:
        check_limit("steps", self.steps)
        check_limit("evaluations", self.evaluations)
        feature_columns(self.without)
        if self.drawn_machines < 0:
            raise ParameterError(f"drawn_machines must be 0 or more; got {self.drawn_machines}.")
        for name, known in (("algorithm", get_args(Algorithm)), ("form", FORMS)):
            if getattr(self, name) not in known:
                raise UnknownNameError(name, getattr(self, name), known)

    @property
    def part(self) -> int:
        """Rounds between two evaluations: whole batches."""
        return self.config.batch * math.ceil(self.steps / self.evaluations / self.config.batch)

    @property
    def memory(self) -> int:
        """Units of the policy's memory; 0 for none."""
        return self.config.memory if self.algorithm == "recurrent_ppo" else 0

    def record(self) -> dict[str, Any]:
        """Returns the settings under the names that files have always had."""
        record = asdict(self) | {"algorithm": _STORED.get(self.algorithm, self.algorithm)}
        return {_STORED.get(name, name): value for name, value in record.items()}

"""Controllers of the fuzz: random trees, and any controller with counts of its rounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from specgym.controllers.controller import Controller
from specgym.controllers.registry import make_controller
from specgym.env.tree.observation import Observation
from specgym.env.tree.parameters import SOURCES, TreeParameters


@dataclass
class Counts:
    """Numbers of rounds, tokens and texts."""

    rounds: int = 0
    """target forwards, those of prompts included"""
    drafted: int = 0
    """draft tokens verified [tokens]"""
    accepted: int = 0
    """draft tokens committed [tokens]"""
    texts: int = 0
    """texts compared"""
    refused: int = 0
    """calls that were refused by name"""
    ties: int = 0
    """texts that differ where two tokens are equally likely up to rounding"""
    rounded: int = 0
    """texts in bfloat16, each of whose tokens is a likeliest one up to rounding"""
    kinds: dict[str, int] = field(default_factory=dict)
    """number of texts of each kind of case"""

    def add(self, other: Counts) -> None:
        """Adds the counts of another case."""
        for name in ("rounds", "drafted", "accepted", "texts", "refused", "ties", "rounded"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for kind, number in other.kinds.items():
            self.kinds[kind] = self.kinds.get(kind, 0) + number

    @property
    def acceptance(self) -> float:
        """Accepted of all drafted tokens."""
        return self.accepted / max(self.drafted, 1)


class RandomTrees:
    """A controller that draws new tree parameters for every round.

    Args:
        seed: seed of the parameters.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(f"{seed} trees")
        self.observes_draft = self.random.random() < 0.3

    def reset(self) -> None:
        """Goes on with other trees."""

    def act(self, observation: Observation) -> TreeParameters:
        """Returns any valid parameters, plain decoding included."""
        return random_parameters(self.random)


def random_parameters(random: Random) -> TreeParameters:
    """Draws any valid tree parameters; often those that draft something."""
    base_depth, max_depth = sorted((random.randint(0, 6), random.randint(1, 6)))
    low, high = sorted((random.random(), random.random()))
    branches = sorted(random.choices((1, 1, 2, 3, 4), k=3))
    return TreeParameters(
        base_depth,
        max_depth,
        *branches,
        high_confidence=high,
        low_confidence=low,
        early_stop=random.random() ** 4,
        deep_expand=random.random() ** 2,
        frontier_width=random.randint(1, 10),
        node_budget=random.choice((1, 4, 8, 16, 40)),
        source=random.choice(SOURCES),
        calibrated=random.random() < 0.5,
        min_reach=random.choice((0.0, 0.0, 0.05, 0.2)),
        min_confidence=random.choice((0.0, 0.0, 0.3, 0.6)),
        max_entropy=random.choice((0.0, 0.0, 0.5, 1.5)),
        min_level_reach=random.choice((0.0, 0.0, 0.4, 0.8)),
    )


class CountingController:
    """Counts the rounds of another controller by what it observes. A text's last round is counted, not its tree.

    Args:
        inner: the controller that chooses.
        counts: where the rounds are added.

    Attributes:
        started: whether a text was begun.
    """

    def __init__(self, inner: Controller, counts: Counts) -> None:
        self.inner, self.counts, self.started = inner, counts, False
        self.observes_draft = inner.observes_draft

    def reset(self) -> None:
        """Begins a text."""
        self.counts.rounds += 1
        self.started = True
        self.inner.reset()

    def act(self, observation: Observation) -> TreeParameters:
        """Returns the inner controller's choice."""
        self.counts.rounds += 1
        self.counts.drafted += observation.last_drafted
        self.counts.accepted += observation.last_accepted
        return self.inner.act(observation)


def named_controller(name: str, seed: int) -> Controller:
    """Returns random trees, or a registered controller."""
    return RandomTrees(seed) if name == "random" else make_controller(name)

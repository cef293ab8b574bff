"""What the study trains and judges, as one set of settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from specgym.agents.learning.config import LearningConfig, LearningPlan
from specgym.agents.policies.observation_groups import GROUPS
from specgym.controllers.registry import make_controller
from specgym.env.common.errors import ParameterError
from specgym.env.gym.grid import ParameterGrid
from specgym.env.replay.traces.records import TraceHeader
from specgym.env.tree.rounds import check_limit

LEARNED = ("ppo", "corrections", "corrections_draft")
"""the policies on the ladder"""
FULL = "corrections_draft"
"""the policy that sees everything: what is taken away is taken away from it"""
FORMS = ("ppo_absolute", "ppo_increments", "ppo", "corrections")
"""the policies that forms of action, and ways to learn, are compared by; none of them is shown the draft's opinion"""
_RULES = (
    "fixed_tree",
    "confidence",
    "dynamic_depth",
    "history",
    "heuristic",
    "confidence_stop",
    "svip",
    "adaedl",
    "gammatune",
    "eagle2",
    "opt_tree",
    "banditspec",
    "tapout",
    "goodput",
)


@dataclass(frozen=True)
class Lesson:
    """Policies that are trained alike, from several seeds."""

    name: str
    """what results call them"""
    plan: LearningPlan
    """how"""
    seeds: int
    """how many there are"""
    held_out: tuple[str, ...] = ()
    """machines that they do not learn on"""


@dataclass(frozen=True)
class StudyPlan:
    """Everything that decides the study, but for the texts and the machines.

    Raises:
        LimitError: a count that is not positive.
        ParameterError: no rule to compare with, or temperature.
        UnknownNameError: a rule or a group of the observation that there is none of.
    """

    temperatures: tuple[float, ...] = (0.0, 1.0)
    """temperatures, each judged apart; policies learn from all of them"""
    rules: tuple[str, ...] = _RULES
    """controllers to compare with, with options as in fixed_tree:branch=3:depth=2"""
    seeds: int = 5
    """policies of every kind on the ladder"""
    few_seeds: int = 3
    """policies of every kind that ablations and transfer compare"""
    steps: int = 800_000
    """rounds that PPO plays [rounds]"""
    hindsight_steps: int = 320_000
    """rounds that are played where every choice is learned from at once [rounds]"""
    looks: int = 16
    """parts of a training: after each, the policy is judged on the validation split"""
    groups: tuple[str, ...] = tuple(group for group in GROUPS if group != "draft")
    """groups of the observation that are taken away one by one; the draft's opinion is always"""
    transfer: bool = True
    """whether policies are trained without one machine at a time"""
    drawn_machines: int = 12
    """machines drawn at random that these learn on besides"""
    static_texts: int = 64
    """texts of the train split that the best static parameters are chosen by"""
    static_values: int = 99
    """most values of each dimension of the grid that they are chosen from, and the bounds; fewer are faster"""
    limit: int | None = None
    """most texts of a temperature that are judged on; all by default"""
    ppo: LearningConfig = field(default_factory=LearningConfig)
    """settings of PPO"""
    hindsight: LearningConfig = field(
        default_factory=lambda: LearningConfig(episodes=256, rounds=16, minibatch=256, epochs=1)
    )
    """settings of learning from every choice at once"""

    def __post_init__(self) -> None:
        for name in ("seeds", "few_seeds", "steps", "hindsight_steps", "looks", "static_texts", "static_values"):
            check_limit(name, getattr(self, name))
        if self.limit is not None:
            check_limit("limit", self.limit)
        if not self.temperatures or not self.rules:
            raise ParameterError("Expected at least one temperature and one rule to compare with; got none.")
        for rule in self.rules:
            make_controller(rule)
        for group in self.groups:
            LearningPlan(blind=(group,))

    def quick(self) -> StudyPlan:
        """The same in minutes: fewer seeds, rounds, rules and parameters. Its numbers show that it works, no more."""
        return dataclasses.replace(
            self,
            rules=("dynamic_depth", "history", "eagle2", "goodput"),
            seeds=2,
            few_seeds=1,
            steps=32_768,
            hindsight_steps=8_192,
            drawn_machines=2,
            looks=2,
            groups=("history", "lookup"),
            static_texts=8,
            static_values=2,
            limit=8,
        )

    def lessons(self, machines: Sequence[str], header: TraceHeader) -> list[Lesson]:
        """Everything that is trained, those that others are compared with first.

        Args:
            machines: the names of the profiles.
            header: of the trace, which may not cover all that policies choose from by default.
        """
        plain, draft = self._hindsight(), self._hindsight(observes_draft=True)
        absolute = self._ppo(grid=_covered(LearningPlan().grid, header))
        found = [
            Lesson("ppo", dataclasses.replace(absolute, form="corrections"), self.seeds),
            Lesson("corrections", plain, self.seeds),
            Lesson("corrections_draft", draft, self.seeds),
            Lesson("ppo_absolute", absolute, self.few_seeds),
            Lesson("ppo_increments", dataclasses.replace(absolute, form="increments"), self.few_seeds),
        ]
        for group in self.groups:
            blind = dataclasses.replace(draft, blind=(group,))
            found.append(Lesson(f"without_{group}", blind, self.few_seeds))
        if self.transfer and len(machines) > 1:
            wide = dataclasses.replace(plain, drawn_machines=self.drawn_machines)
            found += [Lesson(f"never_{name}", wide, self.few_seeds, (name,)) for name in machines]
        return found

    def _ppo(self, grid: ParameterGrid) -> LearningPlan:
        return LearningPlan(steps=self.steps, looks=self.looks, grid=grid, config=self.ppo)

    def _hindsight(self, observes_draft: bool = False) -> LearningPlan:
        return LearningPlan(
            algorithm="hindsight",
            form="corrections",
            observes_draft=observes_draft,
            steps=self.hindsight_steps,
            looks=self.looks,
            config=self.hindsight,
        )


def _covered(grid: ParameterGrid, header: TraceHeader) -> ParameterGrid:
    """The grid as far as a trace by such a rule answers every action of it."""
    deepest, floor = int(header.rule["max_depth"]), float(header.rule["floor"])
    return dataclasses.replace(
        grid,
        base=grid.base.capped(deepest),
        base_depth=tuple(depth for depth in grid.base_depth if depth <= deepest),
        early_stop=tuple(reach for reach in grid.early_stop if reach >= floor),
    )

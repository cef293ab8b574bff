"""The settings of the study: what it trains, and what it compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from specgym.agents.learning.config import LearningConfig, LearningPlan
from specgym.controllers.registry import RULES, make_controller
from specgym.env.common.errors import ParameterError, check_limit
from specgym.env.gym.features import GROUPS, feature_columns

LEARNED = ("ppo", "corrections", "corrections_draft")
"""the policies on the ladder"""
FULL = "corrections_draft"
"""the policy that observes everything; ablations blind it to one group of the observation"""
FORMS = ("ppo_absolute", "ppo_increments", "ppo", "corrections")
"""the policies that compare forms of action and ways to learn; none of them observes the draft's opinion"""


@dataclass(frozen=True)
class Recipe:
    """How a group of policies is trained, which differ by their seeds only."""

    name: str
    """what results call the policies"""
    plan: LearningPlan
    seeds: int
    """number of policies"""
    held_out: tuple[str, ...] = ()
    """machines that the policies do not learn on"""


@dataclass(frozen=True)
class StudyPlan:
    """All settings of the study except its texts and machines.

    Raises:
        LimitError: a count that is not positive.
        ParameterError: no rule to compare with, or no temperature.
        UnknownNameError: an unknown rule or group of the observation.
    """

    temperatures: tuple[float, ...] = (0.0, 1.0)
    """temperatures, each measured separately; policies learn from all of them"""
    rules: tuple[str, ...] = tuple(name for name in RULES if name != "autoregressive")
    """controllers to compare with, with options as in fixed_tree:branch=3:depth=2; all rules by default"""
    seeds: int = 5
    """number of policies of each kind on the ladder"""
    few_seeds: int = 3
    """number of policies of each kind in ablations and transfer"""
    steps: int = 800_000
    """rounds that PPO plays [rounds]"""
    hindsight_steps: int = 320_000
    """rounds played by the algorithm that learns from every choice at once [rounds]"""
    looks: int = 16
    """number of evaluations on the validation split during a training"""
    groups: tuple[str, ...] = tuple(group for group in GROUPS if group != "draft")
    """groups of the observation to take away one by one; the draft's opinion is always taken away too"""
    transfer: bool = True
    """whether to train policies without one machine at a time"""
    drawn_machines: int = 12
    """number of random machines that the policies of the transfer learn on besides"""
    static_texts: int = 64
    """texts of the train split that choose the best static parameters"""
    static_values: int = 99
    """most values of each dimension of the grid for the best static parameters and the bounds; fewer are faster"""
    limit: int | None = None
    """most texts of the test split for each temperature; all by default"""
    ppo: LearningConfig = field(default_factory=LearningConfig)
    """settings of PPO"""
    hindsight: LearningConfig = field(default_factory=lambda: LearningConfig(rounds=16, minibatch=256, epochs=1))
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
        feature_columns(self.groups)

    def quick(self) -> StudyPlan:
        """Returns a plan with fewer seeds, rounds, rules and parameters, which only shows that the study works."""
        return replace(
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

    def recipes(self, machines: Sequence[str], rule: Mapping[str, Any]) -> list[Recipe]:
        """Returns everything to train; policies that others are compared with come first.

        Args:
            machines: the names of the profiles.
            rule: the rule of the trace, which may not cover the whole default grid.
        """
        plan = LearningPlan(evaluations=self.looks)
        absolute = replace(plan, steps=self.steps, config=self.ppo, grid=plan.grid.covered(rule))
        plain = replace(
            plan, algorithm="all_actions", form="corrections", steps=self.hindsight_steps, config=self.hindsight
        )
        draft, few = replace(plain, observes_draft=True), self.few_seeds
        recipes = [
            Recipe("ppo", replace(absolute, form="corrections"), self.seeds),
            Recipe("corrections", plain, self.seeds),
            Recipe("corrections_draft", draft, self.seeds),
            Recipe("ppo_absolute", absolute, few),
            Recipe("ppo_increments", replace(absolute, form="increments"), few),
            *(Recipe(f"without_{group}", replace(draft, without=(group,)), few) for group in self.groups),
        ]
        if self.transfer and len(machines) > 1:
            wide = replace(plain, drawn_machines=self.drawn_machines)
            recipes += [Recipe(f"never_{name}", wide, few, (name,)) for name in machines]
        return recipes

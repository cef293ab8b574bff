"""Controllers that learn online which of several others is best, by upper confidence bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from specgym.controllers.controller import Controller, Rule
from specgym.controllers.rules.chains import AdaEdlController, chain, confidence_stop, svip
from specgym.controllers.rules.phases import PHASE_2, StaticController, fixed_tree
from specgym.controllers.rules.throughput import MachineCosts, last_round, machine_costs
from specgym.controllers.rules.trees import DEPTH
from specgym.env.common.errors import ParameterError
from specgym.env.tree.observation import Observation, PastRound
from specgym.env.tree.parameters import PLAIN, Source, TreeParameters

Reward = Callable[[PastRound, TreeParameters, MachineCosts], tuple[float, float]]
"""value and weight of a round; the worth of an arm is its summed value over its summed weight"""


class BanditController(Rule):
    """Plays the arm with the highest upper confidence bound: worth + exploration * sqrt(2 ln rounds / arm's rounds).

    This is UCB1 (Auer, Cesa-Bianchi and Fischer 2002). Every arm is played once before any is played again, and the
    first of equal arms wins, so nothing is random. It learns from request to request and never forgets. All arms
    observe every round.

    Args:
        arms: controllers to choose from.
        reward: what a round of an arm counts for.
        exploration: width of the bound, 0 or more [units of the reward].

    Raises:
        ParameterError: no arm, or a value outside its range.
    """

    def __init__(self, arms: Sequence[Controller], reward: Reward, exploration: float) -> None:
        if not arms or not 0 <= exploration < math.inf:
            came = f"{len(arms)} and {exploration}"
            raise ParameterError(f"Expected one arm or more and exploration of 0 or more; got {came}.")
        self.arms, self.reward, self.exploration = list(arms), reward, exploration
        self.rounds = [0] * len(arms)
        self.sums = [(0.0, 0.0)] * len(arms)  # value and weight
        self.played: tuple[int, TreeParameters] | None = None

    def reset(self) -> None:
        """Resets the arms. The last round of the request before is not observed and does not count."""
        self.played = None
        for arm in self.arms:
            arm.reset()

    def act(self, observation: Observation) -> TreeParameters:
        """Counts the last round for the arm that was played, and plays the best one."""
        past = last_round(observation)
        if past is not None and self.played is not None:
            self._count(*self.played, past, machine_costs(observation))
        choices = [arm.act(observation) for arm in self.arms]
        best = max(range(len(self.arms)), key=self._bound)
        self.played = best, choices[best]
        return choices[best]

    def _count(self, arm: int, chosen: TreeParameters, past: PastRound, costs: MachineCosts) -> None:
        if chosen.speculates and not past.depth:
            return  # a guard decoded plainly instead, or there was nothing to draft
        value, weight = self.reward(past, chosen, costs)
        self.rounds[arm] += 1
        self.sums[arm] = self.sums[arm][0] + value, self.sums[arm][1] + weight

    def _bound(self, arm: int) -> float:
        if not self.rounds[arm]:
            return math.inf
        value, weight = self.sums[arm]
        return value / weight + self.exploration * math.sqrt(2 * math.log(sum(self.rounds)) / self.rounds[arm])


def banditspec(exploration: float = 0.2, source: Source = "model") -> BanditController:
    """Returns a bandit over plain decoding, two fixed trees and three trees that adapt inside a round.

    Hou et al. 2025, "BanditSpec: Adaptive Speculative Decoding via Bandit Algorithms" (UCBSpec). The reward is
    throughput at the observed costs of the machine, see `machine_costs`.

    Args:
        exploration: width of the confidence bound [tokens per plain step].
        source: who proposes nodes, see `TreeParameters`.

    Raises:
        ParameterError: a value outside its range.
    """
    adaptive = [
        StaticController(replace(PHASE_2, base_depth=depth, early_stop=stop, source=source))
        for depth, stop in ((2, 0.3), (4, 0.1), (8, 0.05))
    ]
    fixed = [fixed_tree(2, depth, source=source) for depth in (2, 4)]
    return BanditController([StaticController(PLAIN), *fixed, *adaptive], _throughput, exploration)


def tapout(exploration: float = 0.3, depth: int = DEPTH, source: Source = "model") -> BanditController:
    """Returns a bandit over four rules that end a chain: by confidence, by entropy, by AdaEDL's bound, and never.

    Sridhar et al. 2025, "TapOut: A Bandit-Based Approach to Dynamic Speculative Decoding", choosing once a round. The
    reward is the mean of two accepted shares: of the chain, and of the longest possible chain.

    Args:
        exploration: width of the confidence bound [share]; 1 is UCB1's own.
        depth: longest chain [tokens].
        source: who proposes tokens, see `TreeParameters`.

    Raises:
        ParameterError: a value outside its range.
    """
    rules: tuple[Callable[..., Controller], ...] = (confidence_stop, svip, AdaEdlController)
    arms = [rule(depth=depth, source=source) for rule in rules]
    return BanditController([*arms, StaticController(chain(depth, source))], _accepted_shares, exploration)


def _throughput(past: PastRound, chosen: TreeParameters, costs: MachineCosts) -> tuple[float, float]:
    return 1.0 + past.accepted, costs.steps(past, chosen.source)


def _accepted_shares(past: PastRound, chosen: TreeParameters, costs: MachineCosts) -> tuple[float, float]:
    return (past.accepted / max(past.depth, 1) + past.accepted / chosen.max_depth) / 2, 1.0

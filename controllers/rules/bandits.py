"""Controllers that learn online which of several others is best, by upper confidence bounds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from specgym.controllers.controller import Controller
from specgym.controllers.rules.chains import AdaEdlController
from specgym.controllers.rules.phases import PHASE_2, StaticController, fixed_tree
from specgym.controllers.rules.published import confidence_stop, svip
from specgym.controllers.rules.shapes import DEEPEST, chain
from specgym.controllers.rules.throughput import MachineCosts, last_round, machine_costs
from specgym.env.common.errors import ParameterError
from specgym.env.tree.observation import Observation, PastRound
from specgym.env.tree.parameters import PLAIN, Source, TreeParameters

Reward = Callable[[PastRound, TreeParameters, MachineCosts], tuple[float, float]]
"""what a round counts for, and by how much: an arm is worth the sum of the first over the sum of the second"""


class BanditController:
    """Plays the arm with the highest upper confidence bound: its worth + exploration * sqrt(2 ln rounds / its rounds).

    That is UCB1 (Auer, Cesa-Bianchi and Fischer 2002). Of equal arms the first is played, and every arm once before
    any is played again, so that nothing is left to chance. It learns from request to request and never forgets. All
    arms watch every round.

    Args:
        arms: what to choose from.
        reward: what a round of an arm counts for.
        exploration: width of the bound, 0 or more [units of the reward].

    Raises:
        ParameterError: no arm, or a value outside its range.
    """

    observes_draft = False

    def __init__(self, arms: Sequence[Controller], reward: Reward, exploration: float) -> None:
        if not arms or not 0 <= exploration < math.inf:
            raise ParameterError(
                f"Expected one arm or more and exploration of 0 or more; got {len(arms)} and {exploration}."
            )
        self.arms, self.reward, self.exploration = list(arms), reward, exploration
        self.rounds = [0] * len(arms)
        self.sums = [(0.0, 0.0)] * len(arms)
        self.played: tuple[int, TreeParameters] | None = None

    def reset(self) -> None:
        """A new request; the last round of the one before is not seen any more, and counts for nothing."""
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

    def _count(self, arm: int, chosen: TreeParameters, past: PastRound, prices: MachineCosts) -> None:
        if chosen.speculates and not past.depth:
            return  # somebody decoded plainly instead, or there was nothing to draft
        value, weight = self.reward(past, chosen, prices)
        self.rounds[arm] += 1
        self.sums[arm] = self.sums[arm][0] + value, self.sums[arm][1] + weight

    def _bound(self, arm: int) -> float:
        if not self.rounds[arm]:
            return math.inf
        value, weight = self.sums[arm]
        return value / weight + self.exploration * math.sqrt(2 * math.log(sum(self.rounds)) / self.rounds[arm])


def banditspec(exploration: float = 0.2, source: Source = "model") -> BanditController:
    """A bandit over configurations: plain decoding, two fixed trees and three that adapt inside a round.

    Hou et al. 2025, "BanditSpec: Adaptive Speculative Decoding via Bandit Algorithms" (UCBSpec). The reward is
    throughput, by the machine's costs as they are observed, see `machine_costs`.

    Args:
        exploration: width of the confidence bound [tokens per plain step].
        source: who proposes nodes, see `TreeParameters`.

    Raises:
        ParameterError: a value outside its range.
    """
    shapes = [
        PLAIN,
        fixed_tree(2, 2, source=source).parameters,
        fixed_tree(2, 4, source=source).parameters,
        *(
            dataclasses.replace(PHASE_2, base_depth=depth, early_stop=stop, source=source)
            for depth, stop in ((2, 0.3), (4, 0.1), (8, 0.05))
        ),
    ]
    return BanditController([StaticController(shape) for shape in shapes], _throughput, exploration)


def tapout(exploration: float = 0.3, depth: int = DEEPEST, source: Source = "model") -> BanditController:
    """A bandit over rules that end a chain: a confidence, an entropy, AdaEDL's bound, and none.

    Sridhar et al. 2025, "TapOut: A Bandit-Based Approach to Dynamic Speculative Decoding", choosing once a round. The
    reward is half the accepted share of the chain and half the accepted share of the longest one.

    Args:
        exploration: width of the confidence bound [share]; 1 is UCB1's own.
        depth: longest chain [tokens].
        source: who proposes tokens, see `TreeParameters`.

    Raises:
        ParameterError: a value outside its range.
    """
    arms: list[Controller] = [
        confidence_stop(depth=depth, source=source),
        svip(depth=depth, source=source),
        AdaEdlController(depth=depth, source=source),
        StaticController(chain(depth, source)),
    ]
    return BanditController(arms, _accepted_shares, exploration)


def _throughput(past: PastRound, chosen: TreeParameters, prices: MachineCosts) -> tuple[float, float]:
    return 1.0 + past.accepted, prices.steps(past, chosen.source)


def _accepted_shares(past: PastRound, chosen: TreeParameters, prices: MachineCosts) -> tuple[float, float]:
    return (past.accepted / max(past.depth, 1) + past.accepted / chosen.max_depth) / 2, 1.0

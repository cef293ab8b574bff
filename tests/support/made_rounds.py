"""Made-up rounds for tests of controllers: observations and drafts without a model."""

from __future__ import annotations

import dataclasses

import numpy as np

from specgym.controllers.controller import Controller
from specgym.controllers.registry import make_controller
from specgym.env.common.arrays import IntArray
from specgym.env.tree.growth import Candidates, grow_tree
from specgym.env.tree.observation import Observation, PastRound
from specgym.env.tree.parameters import TreeParameters
from specgym.env.tree.tree import TokenTree

FIRST = Observation(position=9, generated=4, remaining=40)
CHEAP = {"level_cost": 0.05, "row_cost": 0.001}
EXPENSIVE = {"level_cost": 0.3, "row_cost": 0.3}


def after(accepted: int, depth: int, drafted: int | None = None, **changes: float) -> Observation:
    """Returns the observation after a round with a tree of `depth`, by default a chain, and `accepted` tokens."""
    past = PastRound(depth if drafted is None else drafted, depth, accepted)
    observation = Observation(9, 4, 40, past.drafted, past.depth, past.accepted, recent=(past,))
    return dataclasses.replace(observation, **changes)  # type: ignore[arg-type]


class Levels:
    """A draft whose distribution depends on the depth alone; the last one repeats."""

    def __init__(self, *levels: list[float]) -> None:
        self.levels = levels

    def __call__(self, tree: TokenTree, nodes: IntArray, k: int) -> Candidates:
        odds = np.array(self.levels[min(int(tree.depth[nodes[0]]), len(self.levels) - 1)])
        entropy = -(odds * np.log(odds)).sum()
        log_probs = np.tile(np.log(odds[:k]), (len(nodes), 1))
        tokens = np.tile(np.arange(log_probs.shape[1]), (len(nodes), 1))
        return Candidates(tokens, log_probs, np.exp(log_probs[:, 0]), entropy=np.full(len(nodes), entropy))


def grown(name: str, *levels: list[float]) -> TokenTree:
    """Returns the tree that a rule verifies first."""
    parameters = make_controller(name).act(FIRST)
    tree = grow_tree(0, parameters, Levels(*levels))
    return tree.select(tree.likeliest(parameters.node_budget))


def play(controller: Controller, rounds: int, accepted: int = 0, **costs: float) -> list[TreeParameters]:
    """Returns the choices of so many rounds, in which every tree is a chain with up to `accepted` tokens accepted."""
    chosen, observation = [], Observation(9, 4, 400, **costs)  # type: ignore[arg-type]
    for _ in range(rounds):
        chosen.append(controller.act(observation))
        depth = chosen[-1].base_depth
        observation = after(min(accepted, depth), depth, **costs)
    return chosen

"""Small policies with random weights."""

from __future__ import annotations

import numpy as np

from specgym.agents.policies.action_forms import make_form
from specgym.agents.policies.policy_file import Architecture, Policy
from specgym.agents.policies.policy_network import expected_shapes
from specgym.env.gym.features import FEATURES
from specgym.env.gym.grid import ParameterGrid

GRID = ParameterGrid(base_depth=(0, 2, 4), high_confidence=(0.8, 0.9), early_stop=(0.1,), deep=(False,), branch=(0,))


def random_policy(form: str = "absolute", memory: int = 0, seed: int = 3, grid: ParameterGrid = GRID) -> Policy:
    """A policy that has learned nothing, and is different for every seed."""
    rng, made = np.random.default_rng(seed), make_form(form, grid)
    shapes = expected_shapes(len(FEATURES) + len(made.entries), memory, (8, 8), int(made.nvec.sum()))
    weights = {name: rng.normal(scale=0.7, size=shape).astype(np.float32) for name, shape in shapes.items()}
    return Policy(grid, form, True, Architecture((8, 8), memory), weights, {"seed": seed})

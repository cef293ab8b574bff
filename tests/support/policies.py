"""Small policies with random weights, and observations for them."""

from __future__ import annotations

import numpy as np

from specgym.agents.policies.action_forms import make_form
from specgym.agents.policies.policy_file import Architecture, Policy
from specgym.agents.policies.policy_network import expected_shapes
from specgym.agents.policies.threshold_grid import ThresholdGrid
from specgym.env.gym.features import FEATURES
from specgym.env.gym.grid import ActionSpace, ParameterGrid
from specgym.env.tree.observation import Observation, PastRound

GRID = ParameterGrid(base_depth=(0, 2, 4), high_confidence=(0.8, 0.9), early_stop=(0.1,), deep=(False,), branch=(0,))


def random_policy(
    form: str = "absolute", memory: int = 0, seed: int = 3, grid: ActionSpace = GRID, observes_draft: bool = True
) -> Policy:
    """Makes an untrained policy, which differs from seed to seed."""
    rng, made = np.random.default_rng(seed), make_form(form, grid)
    shapes = expected_shapes(len(FEATURES) + len(made.extra_names), memory, (8, 8), int(made.nvec.sum()))
    weights = {name: rng.normal(scale=0.7, size=shape).astype(np.float32) for name, shape in shapes.items()}
    return Policy(grid, form, observes_draft, Architecture((8, 8), memory), weights, {"seed": seed})


def correcting_policy(seed: int = 3) -> Policy:
    """Makes an untrained policy of corrections, on a grid of less depth than the default."""
    return random_policy("corrections", seed=seed, grid=ThresholdGrid(depth=(0, 6)), observes_draft=False)


def observations(count: int = 200) -> list[Observation]:
    """Returns random observations of every kind."""
    rng = np.random.default_rng(1)
    return [
        Observation(
            position=int(rng.integers(1, 900)),
            generated=int(rng.integers(1, 300)),
            remaining=int(rng.integers(1, 300)),
            last_drafted=int(rng.integers(30)),
            last_depth=4,
            last_accepted=int(rng.integers(4)),
            lookup_match=int(rng.integers(16)),
            lookup_rate=float(rng.random()),
            recent=tuple(PastRound(9, 4, int(rng.integers(5))) for _ in range(rng.integers(10))),
            greedy=bool(rng.integers(2)),
            root_log_probs=tuple(sorted(np.log(rng.random(4) / 4), reverse=True)),
            level_cost=0.1,
            row_cost=float(rng.random() / 10),
        )
        for _ in range(count)
    ]

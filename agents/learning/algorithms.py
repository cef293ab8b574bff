"""Stable-Baselines3's algorithms as they are used here, and how a policy is taken out of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger, configure

from specgym.agents.learning.all_actions import AllActionsRegression
from specgym.agents.learning.config import LearningPlan
from specgym.agents.learning.envs import LearningEnv
from specgym.agents.learning.validation import Act
from specgym.agents.policies.corrections import Corrections
from specgym.agents.policies.policy_network import Weights
from specgym.env.common.arrays import BoolArray, IntArray
from specgym.env.common.errors import ParameterError
from specgym.env.gym.features import FeatureVector

Model: TypeAlias = Any
"""an algorithm of Stable-Baselines3, whose types are not checked here"""


_LEAN = 2.0  # logits that the choices which correct nothing begin with, before all others


def make_model(envs: LearningEnv, plan: LearningPlan, rate: Callable[[], float], seed: int) -> Model:
    """The algorithm in its first state, on the CPU.

    Args:
        envs: what it learns on.
        plan: how.
        rate: the learning rate, asked before every update.
        seed: of the first weights.

    Raises:
        ParameterError: what it takes is not installed.
    """
    config = plan.config
    layers = {"pi": list(config.hidden), "vf": list(config.hidden)}
    options: dict[str, Any] = {
        "n_steps": config.rounds,
        "batch_size": config.minibatch,
        "n_epochs": config.epochs,
        "learning_rate": lambda _: rate(),
        "gamma": config.discount,
        "gae_lambda": config.trace_decay,
        "clip_range": config.clip,
        "ent_coef": config.entropy,
        "seed": seed,
        "device": "cpu",
    }
    if plan.algorithm == "recurrent_ppo":
        memory = {"net_arch": layers, "lstm_hidden_size": plan.memory}
        model = _recurrent()("MlpLstmPolicy", envs, policy_kwargs=memory, **options)
    else:
        kind = AllActionsRegression if plan.algorithm == "hindsight" else PPO
        model = kind("MlpPolicy", envs, policy_kwargs={"net_arch": layers}, **options)
    if isinstance(envs.form, Corrections):
        _begin_unmoved(model, envs.form)
    return model


def _begin_unmoved(model: Model, acting: Corrections) -> None:
    """Makes the first policy lean to the choices that correct nothing: it begins as goodput at a fixed price."""
    first = np.cumsum(acting.nvec) - acting.nvec
    with torch.no_grad():
        model.policy.action_net.bias[torch.as_tensor(first + acting.unmoved)] += _LEAN


def check_installed(plan: LearningPlan) -> None:
    """Refuses an algorithm that is not installed. Raises `ParameterError`."""
    if plan.algorithm == "recurrent_ppo":
        _recurrent()


def _recurrent() -> Any:
    try:
        from sb3_contrib import RecurrentPPO  # noqa: PLC0415
    except ImportError as error:
        raise ParameterError(
            "The algorithm recurrent_ppo needs sb3-contrib, which is not installed: pip install 'specgym[recurrent]', "
            "or choose ppo."
        ) from error
    return RecurrentPPO


def make_logger(folder: str) -> Logger:
    """Where the algorithm's figures go: to TensorBoard if it is installed (extra ``train``), else nowhere."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: F401, PLC0415
    except ImportError:
        return configure(folder, [])
    return configure(folder, ["tensorboard"])


def model_act(model: Model) -> Act:
    """What the algorithm's policy thinks best; it remembers what it has seen where it has a memory."""
    state: Any = None

    def act(seen: FeatureVector, first: BoolArray) -> IntArray:
        nonlocal state
        chosen, state = model.predict(seen, state=state, episode_start=first, deterministic=True)
        return np.asarray(chosen, np.int64)

    return act


def model_weights(model: Model) -> Weights:
    """The policy's tensors under the names of `expected_shapes`; the value's are left behind."""
    state = {name: tensor.detach().numpy().copy() for name, tensor in model.policy.state_dict().items()}
    weights: Weights = {}
    if "lstm_actor.weight_ih_l0" in state:
        weights["memory.input"] = state["lstm_actor.weight_ih_l0"]
        weights["memory.state"] = state["lstm_actor.weight_hh_l0"]
        weights["memory.bias"] = state["lstm_actor.bias_ih_l0"] + state["lstm_actor.bias_hh_l0"]
    prefix = "mlp_extractor.policy_net."
    layers = sorted({int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix)})
    for index, layer in enumerate(layers):
        for part in ("weight", "bias"):
            weights[f"hidden.{index}.{part}"] = state[f"{prefix}{layer}.{part}"]
    return weights | {f"heads.{part}": state[f"action_net.{part}"] for part in ("weight", "bias")}

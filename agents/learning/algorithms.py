"""The algorithms of Stable-Baselines3 as they are set up here, and the policy's tensors taken out of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from stable_baselines3 import PPO

from specgym.agents.learning.config import LearningPlan
from specgym.agents.learning.envs import Act, ReplayVecEnv
from specgym.agents.policies.action_forms import Corrections
from specgym.agents.policies.policy_network import Weights
from specgym.env.common.arrays import BoolArray, FloatArray, IntArray
from specgym.env.common.errors import ParameterError
from specgym.env.gym.features import FeatureVector, feature_columns

Model: TypeAlias = Any
"""an algorithm of Stable-Baselines3, whose types are not checked here"""

_NEUTRAL_LOGIT = 2.0  # added to the choice that corrects nothing, so that training starts close to goodput
_TEMPERATURE = 0.1  # gain that makes a choice e times as likely in training [tokens]
_MAX_LOSS = 4.0  # bound on losses against the best choice, so that hopeless ones do not dominate the fit [tokens]


def make_model(envs: ReplayVecEnv, plan: LearningPlan, learning_rate: Callable[[], float], seed: int) -> Model:
    """Makes the algorithm in its initial state, on the CPU.

    Args:
        envs: the episodes to learn on.
        plan: the settings.
        learning_rate: returns the learning rate, called before every update.
        seed: seed of the initial weights.

    Raises:
        ParameterError: the algorithm is not installed.
    """
    config = plan.config
    network: dict[str, Any] = {"net_arch": {"pi": list(config.hidden), "vf": list(config.hidden)}}
    if plan.algorithm == "recurrent_ppo":
        algorithm, policy = _recurrent_ppo(), "MlpLstmPolicy"
        network["lstm_hidden_size"] = plan.memory
    else:
        algorithm, policy = AllActionsRegression if plan.algorithm == "all_actions" else PPO, "MlpPolicy"
    model = algorithm(
        policy,
        envs,
        policy_kwargs=network,
        n_steps=config.rounds,
        batch_size=config.minibatch,
        n_epochs=config.epochs,
        learning_rate=lambda _: learning_rate(),
        gamma=config.discount,
        gae_lambda=config.trace_decay,
        clip_range=config.clip,
        ent_coef=config.entropy,
        seed=seed,
        device="cpu",
    )
    if isinstance(envs.form, Corrections):
        with torch.no_grad():
            model.policy.action_net.bias[torch.as_tensor(envs.form.neutral)] += _NEUTRAL_LOGIT
    return model


def _recurrent_ppo() -> Any:
    try:
        from sb3_contrib import RecurrentPPO  # noqa: PLC0415
    except ImportError as error:
        raise ParameterError(
            "The algorithm recurrent_ppo needs sb3-contrib, which is not installed: pip install 'specgym[recurrent]', "
            "or choose ppo."
        ) from error
    return RecurrentPPO


def model_act(model: Model) -> Act:
    """Returns a function that takes the policy's best choices and keeps the state of its memory, if it has one."""
    state: Any = None

    def act(observations: FeatureVector, first: BoolArray) -> IntArray:
        nonlocal state
        choices, state = model.predict(observations, state=state, episode_start=first, deterministic=True)
        return np.asarray(choices, np.int64)

    return act


def model_weights(model: Model, without: Sequence[str] = ()) -> Weights:
    """Returns copies of the policy's tensors under the names of `expected_shapes`, without the value network's.

    Args:
        model: the algorithm.
        without: groups of features whose weights are set to 0, so that the policy ignores them.
    """
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
    weights |= {f"heads.{part}": state[f"action_net.{part}"] for part in ("weight", "bias")}
    weights["memory.input" if "memory.input" in weights else "hidden.0.weight"][:, feature_columns(without)] = 0
    return weights


class AllActionsRegression(PPO):  # type: ignore[misc]  # the library's types are not checked here
    """Regression on the gains of all actions at once, which a replay can tabulate.

    PPO learns from the choices that it happened to make, of which few in a hundred are instructive. On a trace, the
    outcome of a round is tabulated for every choice. So a network is fitted by least squares to the gains of all
    choices, and the policy takes the choice with the highest expected gain. A round's gain is its tokens less the price
    of its time. The effect of a choice on later rounds is left out: the myopic bound is within a few percent of the
    clairvoyant one.

    The policy still plays its own rounds, since its observations depend on what it did. It samples its choices from a
    Boltzmann distribution, whose logits are the expected gains over `_TEMPERATURE`.

    The algorithm has the interface of PPO, so that it is trained, evaluated and saved in the same way. Of PPO's
    settings it uses rounds, minibatch, epochs and learning rate.
    """

    _last_obs: Any

    def collect_rollouts(self, env: ReplayVecEnv, callback: Any, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """Plays rounds and stores observations with the gains of every choice."""
        self.policy.set_training_mode(False)
        batches: list[tuple[torch.Tensor, torch.Tensor]] = []
        callback.on_rollout_start()
        for _ in range(n_rollout_steps):
            observations = torch.as_tensor(self._last_obs)
            with torch.no_grad():
                choices = self.policy.get_distribution(observations).sample().numpy()
            batches.append((observations, torch.as_tensor(_centred_gains(env.gains()), dtype=torch.float32)))
            self._last_obs, rewards, self._last_episode_starts, _ = env.step(choices)
            self.num_timesteps += env.num_envs
            callback.update_locals({"rewards": rewards})
            if not callback.on_step():
                return False
        self._observations, self._gains = (torch.cat(parts) for parts in zip(*batches, strict=True))
        callback.on_rollout_end()
        return True

    def train(self) -> None:
        """Fits the heads to the stored gains."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        errors: list[float] = []
        for _ in range(self.n_epochs):
            order = torch.as_tensor(np.random.permutation(len(self._observations)))
            for rows in order.split(self.batch_size):  # type: ignore[no-untyped-call]
                heads = self.policy.get_distribution(self._observations[rows]).distribution
                expected = _TEMPERATURE * _joint_logits([head.logits for head in heads])  # [rows, choices]
                expected = expected - expected.mean(dim=1, keepdim=True)
                error = (expected - self._gains[rows]).square().mean()
                self.policy.optimizer.zero_grad()
                error.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                self.policy.optimizer.step()
                errors.append(float(error.detach()))
        self.logger.record("train/squared_error", np.mean(errors))


def _centred_gains(gains: FloatArray) -> FloatArray:
    """Returns gains with losses clipped at `_MAX_LOSS`, less their mean over the choices, `float64[n, choices]`."""
    clipped = np.maximum(gains, gains.max(axis=1, keepdims=True) - _MAX_LOSS)
    return np.asarray(clipped - clipped.mean(axis=1, keepdims=True))


def _joint_logits(heads: list[torch.Tensor]) -> torch.Tensor:
    """Returns logits of all combinations of the heads' choices, `[n, choices]`. The last head counts fastest.

    Args:
        heads: logits of each head's choices, `[n, choices of the head]`.
    """
    total = heads[0]
    for head in heads[1:]:
        total = (total[:, :, None] + head[:, None, :]).flatten(1)
    return total

"""Training of one policy on replays, in parts, each of which starts new episodes and depends on the last part alone.

So a run that was interrupted resumes after the last complete part. On the CPU it ends with exactly the weights of a run
that was not interrupted. A checkpoint holds weights, optimiser and prices of time, none of it code.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from specgym.agents.learning.algorithms import make_model, model_act, model_weights
from specgym.agents.learning.envs import add_by_machine
from specgym.agents.learning.setup import TrainingSetup
from specgym.agents.learning.training_history import Evaluation, TrainingHistory
from specgym.agents.policies.policy_file import Architecture, Policy, save_policy
from specgym.env.common.arrays import BoolArray, FloatArray
from specgym.env.common.checkpoint import load_checkpoint, save_checkpoint
from specgym.env.common.errors import ModelFileError
from specgym.env.common.processes import interrupts_held

CHECKPOINT = "checkpoint.safetensors"

Progress = Callable[[int, TrainingHistory], None]
"""`progress(steps, history)`, called after every step of the episodes"""

_FIRST_WEIGHT = 1e-6  # weight of the initial prices against anything that is measured


class TimePrices:
    """Prices of time by latency profile and mode (greedy, sampled), measured in the rounds that are played.

    Throughput is expected tokens over expected time, which is no sum of rewards. But the policy that maximises
    ``tokens - lam * time`` also maximises the quotient, if `lam` is the highest quotient that any policy reaches.
    Setting `lam` to the quotient of the current policy, again and again, converges to that value (Dinkelbach 1967).
    Each machine has prices of its own, for greedy and for sampled texts.

    The tokens of an episode are given by its text. Without a discount, the price therefore changes nothing in a whole
    episode. It makes the mean reward of a round zero, so that little is lost by discounting later rounds.

    Args:
        profiles: number of profiles.
        greedy: whether each text is greedy, `bool[texts]`.
        decay: share of the sums that is kept at every update.

    Attributes:
        sums: weighted sums of tokens and of time [plain steps], see `add_by_machine`, `float64[2, profiles, 2]`.
    """

    def __init__(self, profiles: int, greedy: BoolArray, decay: float) -> None:
        self.greedy, self.decay = greedy, decay
        self.sums: FloatArray = np.full((2, profiles, 2), _FIRST_WEIGHT)  # one token a plain step, as plain decoding
        self.begin()

    @property
    def lam(self) -> FloatArray:
        """The prices, `float64[profiles, 2]` [tokens per plain step]."""
        return np.asarray(self.sums[0] / self.sums[1])

    def begin(self) -> None:
        """Discards the rounds that were added since the last update."""
        self._added = np.zeros_like(self.sums)

    def add(self, info: dict[str, Any]) -> None:
        """Adds the rounds of a step, given by the info of `ReplayVectorEnv.step`."""
        add_by_machine(self._added, info, self.greedy)

    def update(self) -> None:
        """Updates the prices by the rounds that were added."""
        self.sums = self.decay * self.sums + self._added
        self.begin()


class Learner:
    """Trains one policy.

    Args:
        setup: episodes to learn on, validation and settings.
        seed: decides everything else.
        folder: holds the checkpoint, the best policy and TensorBoard's files; a run found there is resumed.

    Raises:
        ModelFileError: the checkpoint is corrupt.
        ParameterError: the checkpoint belongs to a run with other settings, or the algorithm is not installed.
    """

    def __init__(self, setup: TrainingSetup, seed: int, folder: Path) -> None:
        self.setup, self.plan, self.envs = setup, setup.plan, setup.envs
        self.seed, self.folder, self.history = seed, folder, TrainingHistory()
        self.prices = TimePrices(len(setup.all_names), self.envs.envs.replays.greedy, self.plan.config.price_decay)
        self.model = make_model(self.envs, self.plan, self._learning_rate, seed)
        self.settings = json.dumps([self.plan.record(), setup.all_names, seed, setup.source], sort_keys=True)
        if (folder / CHECKPOINT).exists():
            self._restore(folder / CHECKPOINT)

    @property
    def done(self) -> int:
        """Number of complete parts."""
        return len(self.history.evaluations)

    def run(self, progress: Progress = lambda steps, history: None) -> TrainingHistory:
        """Trains to the end.

        Raises:
            FileWriteError: a file of the run could not be written.
            KeyboardInterrupt: the run was interrupted; an unfinished part is lost.
        """
        if self.done < self.plan.evaluations:
            self.model.set_logger(configure(str(self.folder), ["tensorboard"] if find_spec("tensorboard") else []))
            with interrupts_held() as interrupted:
                while self.done < self.plan.evaluations and not interrupted():
                    part = _Part(self, progress, interrupted)
                    if part.play():
                        self._evaluate(part)
            self.model.logger.close()
        return self.history

    def policy(self) -> Policy:
        """Returns the policy in its current state."""
        plan = self.plan
        settings = {name: value for name, value in plan.record().items() if name != "grid"}
        return Policy(
            grid=self.envs.envs.grid,
            form=plan.form,
            observes_draft=plan.observes_draft,
            architecture=Architecture(plan.config.hidden, plan.memory),
            weights=model_weights(self.model, plan.without),
            training={"settings": settings, "seed": self.seed, "profiles": self.setup.learned},
        )

    def _learning_rate(self) -> float:
        return self.plan.config.learning_rate * (1 - 0.9 * self.done / self.plan.evaluations)

    def _evaluate(self, part: _Part) -> None:
        throughput, names = self.setup.validation(model_act(self.model)), self.setup.names
        evaluation = Evaluation(
            steps=part.num_timesteps,
            seconds=part.seconds + (self.history.last.seconds if self.done else 0.0),
            score=throughput.score,
            throughput=dict(zip(names, throughput.by_profile, strict=True)),
            by_way=dict(zip(names, throughput.by_mode, strict=True)),
            lam=dict(zip(self.setup.all_names, self.prices.lam.tolist(), strict=True)),
            reward=_reward_terms(part.sums),
        )
        self.history.evaluations.append(evaluation)
        for name, value in evaluation.throughput.items():
            self.model.logger.record(f"validation/{name}", value)
        self.model.logger.dump(evaluation.steps)
        if self.history.best is evaluation:
            save_policy(self.policy(), self.folder)
        sums = dict(zip(("tokens", "time"), self.prices.sums.tolist(), strict=True))
        progress, policy = {"course": self.history.record()} | sums, self.model.policy
        save_checkpoint(self.folder / CHECKPOINT, policy, policy.optimizer, progress, self.settings)

    def _restore(self, path: Path) -> None:
        policy = self.model.policy
        progress = load_checkpoint(path, policy, policy.optimizer, self.settings)
        try:
            self.history = TrainingHistory.from_record(progress["course"])
            self.prices.sums = np.array([progress["tokens"], progress["time"]])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path} is corrupt ({error}). Delete it and run the command again.") from error


class _Part(BaseCallback):  # type: ignore[misc]  # the library's types are not checked here
    """A part of the training between two evaluations: plays rounds, updates prices and sums up the reward."""

    def __init__(self, learner: Learner, progress: Progress, interrupted: Callable[[], bool]) -> None:
        super().__init__()
        self.learner, self.progress, self.interrupted = learner, progress, interrupted
        self.sums = np.zeros(4)  # tokens, time, reward, rounds
        self.batch = np.zeros(4)  # the same since the last update
        self.seconds = 0.0

    def play(self) -> bool:
        """Plays the part and returns whether it is complete."""
        learner, model = self.learner, self.learner.model
        model.set_random_seed(int(np.random.SeedSequence([learner.seed, learner.done]).generate_state(1)[0]))
        model._last_obs = None  # makes learn() start new episodes
        model.num_timesteps = learner.done * learner.plan.part
        model.ent_coef = learner.plan.config.entropy * (1 - learner.done / learner.plan.evaluations)
        learner.prices.begin()
        learner.envs.set_lam(learner.prices.lam)
        start = time.perf_counter()
        model.learn(learner.plan.part, callback=self, reset_num_timesteps=False)
        self.seconds = time.perf_counter() - start
        return bool(model.num_timesteps == (learner.done + 1) * learner.plan.part) and not self.interrupted()

    def _on_step(self) -> bool:
        info, rewards = self.learner.envs.info, self.locals["rewards"]
        self.learner.prices.add(info)
        self.batch += [info["tokens"].sum(), info["plain_steps"].sum(), rewards.sum(), len(rewards)]
        self.progress(self.num_timesteps, self.learner.history)
        return not self.interrupted()

    def _on_rollout_end(self) -> None:
        learner = self.learner
        learner.prices.update()
        learner.envs.set_lam(learner.prices.lam)
        for name, value in _reward_terms(self.batch).items():
            self.logger.record(f"reward/{name}", value)
        for name, prices in zip(learner.setup.all_names, learner.prices.lam.tolist(), strict=True):
            for mode, price in zip(("greedy", "sampled"), prices, strict=True):
                self.logger.record(f"price/{name} {mode}", price)
        self.sums += self.batch
        self.batch[:] = 0


def _reward_terms(sums: FloatArray) -> dict[str, float]:
    """Returns means a round of the reward and its terms, from sums of tokens, time, reward and rounds."""
    tokens, spent, total, _ = (sums / sums[3]).tolist()
    return {"tokens": tokens, "time": spent, "cost": tokens - total, "total": total}

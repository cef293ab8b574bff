"""Learning a policy on replays, in parts: each begins its episodes anew and is a function of the part before.

So a run that was interrupted, at whatever moment, goes on at the last part that was finished and ends, on the CPU, with
the very weights of one that was not; and all that has to be saved is weights, optimiser and prices, none of it code.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from specgym.agents.learning.algorithms import make_logger, make_model, model_act, model_weights
from specgym.agents.learning.config import LearningPlan
from specgym.agents.learning.envs import LearningEnv, hide
from specgym.agents.learning.time_price import Prices
from specgym.agents.learning.training_history import Evaluation, TrainingHistory
from specgym.agents.learning.validation import Throughput, Validation
from specgym.agents.policies.policy_file import Architecture, Policy, save_policy
from specgym.env.common.checkpoint import load_checkpoint, save_checkpoint
from specgym.env.common.errors import ModelFileError
from specgym.env.common.interrupts import interrupts_held

CHECKPOINT = "checkpoint.safetensors"

Progress = Callable[[int, TrainingHistory], None]
"""`progress(steps, course)`, after every step of the episodes"""


class Learner:
    """Trains one policy.

    Args:
        envs: what it learns on; its grid and lens are those of `plan`.
        validation: judges it.
        names: of the latency profiles, in their order: those that it is judged on first.
        plan: how.
        seed: decides everything besides.
        folder: holds the checkpoint, the best policy and TensorBoard's files; a run that is there is gone on with.
        source: what is learned from, to recognise a checkpoint of something else.
        learned: names of the profiles that are learned on, which the policy tells of itself; all if None.

    Raises:
        ModelFileError: the checkpoint is corrupt.
        ParameterError: the checkpoint belongs to a run with other settings, or the algorithm is not installed.
    """

    def __init__(
        self,
        envs: LearningEnv,
        validation: Validation,
        names: list[str],
        plan: LearningPlan,
        *,
        seed: int,
        folder: Path,
        source: str = "",
        learned: list[str] | None = None,
    ) -> None:
        self.learned = names if learned is None else learned
        self.envs, self.validation, self.names, self.plan = envs, validation, names, plan
        self.seed, self.folder, self.course = seed, folder, TrainingHistory()
        self.prices = Prices(len(names), envs.envs.replays.greedy, plan.config.price_decay)
        self.model = make_model(envs, plan, self._rate, seed)
        self.settings = json.dumps([asdict(plan), names, seed, source], sort_keys=True)
        if (folder / CHECKPOINT).exists():
            self._restore(folder / CHECKPOINT)

    @property
    def done(self) -> int:
        """Parts that are finished."""
        return len(self.course.looks)

    def run(self, progress: Progress = lambda steps, course: None) -> TrainingHistory:
        """Goes on to the end.

        Raises:
            FileWriteError: a file of the run could not be written.
            KeyboardInterrupt: what is not in the checkpoint is a part that was not finished.
        """
        if self.done < self.plan.looks:
            self.model.set_logger(make_logger(str(self.folder)))
            with interrupts_held() as interrupted:
                while self.done < self.plan.looks and not interrupted():
                    part = _Part(self, progress, interrupted)
                    if part.play():
                        self._look(part)
            self.model.logger.close()
        return self.course

    def policy(self) -> Policy:
        """The policy as it is now."""
        plan = self.plan
        settings = {name: value for name, value in asdict(plan).items() if name != "grid"}
        return Policy(
            grid=self.envs.envs.grid,
            form=plan.form,
            observes_draft=plan.observes_draft,
            architecture=Architecture(plan.config.hidden, plan.memory),
            weights=hide(model_weights(self.model), plan.blind),
            training={"settings": settings, "seed": self.seed, "profiles": self.learned},
        )

    def _rate(self) -> float:
        return self.plan.config.learning_rate * (1 - 0.9 * self.done / self.plan.looks)

    def _look(self, part: _Part) -> None:
        found = self.validation(model_act(self.model))
        look = _summary(part, found, self.names, self.prices.lam.tolist())
        self.course.looks.append(look)
        for name, value in look.throughput.items():
            self.model.logger.record(f"validation/{name}", value)
        self.model.logger.dump(look.steps)
        if self.course.best is look:
            save_policy(self.policy(), self.folder)
        self._save()

    def _save(self) -> None:
        history = {
            "course": self.course.record(),
            "tokens": self.prices.tokens.tolist(),
            "time": self.prices.time.tolist(),
        }
        policy = self.model.policy
        save_checkpoint(self.folder / CHECKPOINT, policy, policy.optimizer, history, self.settings)

    def _restore(self, path: Path) -> None:
        policy = self.model.policy
        history = load_checkpoint(path, policy, policy.optimizer, self.settings)
        try:
            self.course = TrainingHistory.of(history["course"])
            self.prices.tokens, self.prices.time = np.array(history["tokens"]), np.array(history["time"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path} is corrupt ({error}). Delete it and run the command again.") from error


class _Part(BaseCallback):  # type: ignore[misc]  # the library's types are not checked here
    """One part: plays its rounds, and keeps the prices and the account of the reward."""

    def __init__(self, learner: Learner, progress: Progress, interrupted: Callable[[], bool]) -> None:
        super().__init__()
        self.learner, self.progress, self.interrupted = learner, progress, interrupted
        self.sums = np.zeros(4)  # tokens, time, reward, rounds
        self.batch = np.zeros(4)
        self.seconds = 0.0

    def play(self) -> bool:
        """Returns whether it was played to its end."""
        learner, model = self.learner, self.learner.model
        model.set_random_seed(int(np.random.SeedSequence([learner.seed, learner.done]).generate_state(1)[0]))
        model._last_obs = None  # learn() begins its episodes anew
        model.num_timesteps = learner.done * learner.plan.part
        model.ent_coef = learner.plan.config.entropy * (1 - learner.done / learner.plan.looks)
        learner.prices.begin()
        learner.envs.set_lam(learner.prices.lam)
        before = time.perf_counter()
        model.learn(learner.plan.part, callback=self, reset_num_timesteps=False)
        self.seconds = time.perf_counter() - before
        return bool(model.num_timesteps == (learner.done + 1) * learner.plan.part) and not self.interrupted()

    def _on_step(self) -> bool:
        told, rewards = self.learner.envs.told, self.locals["rewards"]
        self.learner.prices.add(told)
        self.batch += [told["tokens"].sum(), told["plain_steps"].sum(), rewards.sum(), len(rewards)]
        self.progress(self.num_timesteps, self.learner.course)
        return not self.interrupted()

    def _on_rollout_end(self) -> None:
        learner, means = self.learner, reward_terms(self.batch)
        learner.prices.update()
        learner.envs.set_lam(learner.prices.lam)
        for name, value in means.items():
            self.logger.record(f"reward/{name}", value)
        for name, prices in zip(learner.names, learner.prices.lam.tolist(), strict=True):
            for way, price in zip(("greedy", "sampled"), prices, strict=True):
                self.logger.record(f"price/{name} {way}", price)
        self.sums += self.batch
        self.batch[:] = 0


def reward_terms(sums: np.ndarray[Any, Any]) -> dict[str, float]:
    """Means a round of the reward and its terms, from sums of tokens, time, reward and rounds."""
    tokens, spent, total, _ = (sums / sums[3]).tolist()
    return {"tokens": tokens, "time": spent, "cost": tokens - total, "total": total}


def _summary(part: _Part, found: Throughput, names: list[str], lam: list[list[float]]) -> Evaluation:
    looks, judged = part.learner.course.looks, names[: len(found.tokens)]
    return Evaluation(
        steps=part.num_timesteps,
        seconds=part.seconds + (looks[-1].seconds if looks else 0.0),
        score=found.score,
        throughput=dict(zip(judged, found.by_profile().tolist(), strict=True)),
        by_way=dict(zip(judged, found.by_way(), strict=True)),
        lam=dict(zip(names, lam, strict=True)),
        reward=reward_terms(part.sums),
    )

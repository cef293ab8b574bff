"""The evaluations of training runs, and the files that a command leaves when its runs have ended."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from specgym.agents.learning.config import LearningPlan
from specgym.agents.policies.policy_file import SETTINGS, WEIGHTS, load_policy
from specgym.controllers.evaluation.results.provenance import run_facts
from specgym.controllers.evaluation.results.tables import Table
from specgym.env.common.files import atomic_path, write_text

RESULTS = "training.json"
_NEAR = 0.98  # share of the last score that counts as converged


@dataclass(frozen=True)
class Evaluation:
    """A part of the training, and the policy's throughput after it. The fields are the keys of files."""

    steps: int
    """rounds played so far [rounds]"""
    seconds: float
    """training time so far, without evaluations and tables [s]"""
    score: float
    """see `Throughput.score`"""
    throughput: dict[str, float]
    """on the validation split by profile [tokens per plain step]"""
    by_way: dict[str, list[float | None]]
    """the same of greedy texts, and of sampled texts"""
    lam: dict[str, list[float]]
    """prices of time by profile, greedy and sampled [tokens per plain step]"""
    reward: dict[str, float]
    """mean over the rounds of the part: `tokens`, `time` [plain steps], `cost` (time at its price) and `total`"""


@dataclass
class TrainingHistory:
    """All evaluations of a training run."""

    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def last(self) -> Evaluation:
        """The last evaluation; there must be one."""
        return self.evaluations[-1]

    @property
    def best(self) -> Evaluation:
        """The first evaluation with the highest score; there must be one."""
        return max(self.evaluations, key=lambda evaluation: evaluation.score)

    @property
    def near(self) -> Evaluation:
        """The first evaluation whose score is within 2 % of the last one's."""
        return next(evaluation for evaluation in self.evaluations if evaluation.score >= _NEAR * self.last.score)

    @property
    def steps_per_second(self) -> float:
        """Rounds that were played a second, updates included."""
        return self.last.steps / self.last.seconds

    def record(self) -> list[dict[str, Any]]:
        """Returns the evaluations as JSON can hold them."""
        return [asdict(evaluation) for evaluation in self.evaluations]

    @classmethod
    def from_record(cls, record: Sequence[Mapping[str, Any]]) -> TrainingHistory:
        """Returns the history of a record made by `record`. Raises `TypeError` for anything else."""
        return cls([Evaluation(**evaluation) for evaluation in record])


def best_seed(histories: Mapping[int, TrainingHistory]) -> int:
    """Returns the seed whose policy scored highest on the validation split."""
    return max(histories, key=lambda seed: histories[seed].best.score)


def keep_best(folder: Path, best: Path) -> None:
    """Copies the policy in `best` to `folder`. Raises `FileWriteError`, or `PolicyError` if the policy is damaged."""
    load_policy(best)
    for name in (WEIGHTS, SETTINGS):
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes((best / name).read_bytes())


def speed(histories: Sequence[TrainingHistory]) -> dict[str, float]:
    """Returns the speed of learning, as medians over the seeds.

    It is given as rounds a second, and as the rounds and minutes until the score was within 2 % of the last one.
    """
    return {
        "steps_per_second": median(history.steps_per_second for history in histories),
        "steps_to_within_2_percent": float(median(history.near.steps for history in histories)),
        "minutes_to_within_2_percent": median(history.near.seconds for history in histories) / 60,
    }


def seed_table(histories: Mapping[int, TrainingHistory], names: Sequence[str]) -> Table:
    """Returns the throughput of each seed's best policy on the validation split, for the machines of these names."""
    rows = []
    for seed, history in histories.items():
        speeds = [f"{history.best.throughput[name]:.3f}" for name in names]
        rows.append((seed, *speeds, f"{history.best.steps:,}", f"{history.steps_per_second:,.0f}"))
    return Table(("seed", *names, "steps", "steps/s"), rows, "Throughput on the validation split [tokens / plain step]")


def write_report(
    folder: Path,
    histories: Mapping[int, TrainingHistory],
    plan: LearningPlan,
    about: Mapping[str, Any],
    started: datetime.datetime,
) -> None:
    """Writes ``training.json``.

    Args:
        folder: folder of the file.
        histories: training histories by seed.
        plan: the settings.
        about: the data of the runs.
        started: start of the command, in UTC.

    Raises:
        FileWriteError: the file could not be written.
    """
    best = [history.best for history in histories.values()]
    by_name = {"score": [evaluation.score for evaluation in best]} | {
        name: [evaluation.throughput[name] for evaluation in best] for name in best[0].throughput
    }
    record = {
        "schema": "specgym training 1",
        **run_facts(started, "cpu"),
        "about": dict(about),
        "plan": plan.record() | {"grid": plan.grid.to_dict()},
        "best_seed": best_seed(histories),
        "seeds": {str(seed): _seed_record(history) for seed, history in histories.items()},
        "speed": speed(list(histories.values())),
        "summary": {
            name: {"median": median(scores), "least": min(scores), "most": max(scores)}
            for name, scores in by_name.items()
        },
    }
    write_text(folder / RESULTS, json.dumps(record, indent=1, allow_nan=False) + "\n")


def _seed_record(history: TrainingHistory) -> dict[str, Any]:
    return {
        "steps_per_second": history.steps_per_second,
        "steps_to_within_2_percent": history.near.steps,
        "seconds_to_within_2_percent": history.near.seconds,
        "best_score": history.best.score,
        "looks": history.record(),
    }

"""How a training run went, look by look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

_NEAR = 0.98  # of the last score


@dataclass(frozen=True)
class Evaluation:
    """A part of the training, and how good the policy was after it."""

    steps: int
    """rounds played so far [rounds]"""
    seconds: float
    """time that training took so far, without looking and tabulating [s]"""
    score: float
    """see `Throughput.score`"""
    throughput: dict[str, float]
    """on the validation split by profile [tokens per plain step]"""
    by_way: dict[str, list[float | None]]
    """the same of greedy texts, and of sampled ones"""
    lam: dict[str, list[float]]
    """prices of time by profile, greedy and sampled [tokens per plain step]"""
    reward: dict[str, float]
    """mean over the rounds of the part: `tokens`, `time` [plain steps], `cost`, which is its price, and `total`"""


@dataclass
class TrainingHistory:
    """All looks so far."""

    looks: list[Evaluation] = field(default_factory=list)

    @property
    def best(self) -> Evaluation:
        """The look with the highest score, of several the first; there must be one."""
        return max(self.looks, key=lambda look: look.score)

    @property
    def near(self) -> Evaluation:
        """The first look whose score is within 2 % of the last one's."""
        return next(look for look in self.looks if look.score >= _NEAR * self.looks[-1].score)

    def record(self) -> list[dict[str, Any]]:
        """The looks as JSON can hold them."""
        return [asdict(look) for look in self.looks]

    @classmethod
    def of(cls, record: Sequence[Mapping[str, Any]]) -> TrainingHistory:
        """The course that `record` told. Raises `TypeError` for anything else."""
        return cls([Evaluation(**look) for look in record])

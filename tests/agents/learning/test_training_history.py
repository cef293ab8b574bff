"""A training history is saved as JSON, and names its best evaluation and the time to converge."""

from __future__ import annotations

import json

from specgym.agents.learning.training_history import Evaluation, TrainingHistory, best_seed


def evaluate(steps: int, score: float) -> Evaluation:
    by_mode: dict[str, list[float | None]] = {"one": [score, None]}
    return Evaluation(steps, steps / 10, score, {"one": score}, by_mode, {"one": [1.0, 1.0]}, {"total": 0.0})


class TestHistory:
    def test_json_keeps_it(self) -> None:
        history = TrainingHistory([evaluate(1, 1.5), evaluate(2, 1.2)])
        assert TrainingHistory.from_record(json.loads(json.dumps(history.record()))) == history

    def test_it_finds_the_best_and_the_first_near_the_last(self) -> None:
        history = TrainingHistory([evaluate(1, 1.0), evaluate(2, 1.49), evaluate(3, 1.52), evaluate(4, 1.5)])
        assert (history.best.steps, history.near.steps) == (3, 2)
        assert best_seed({4: history, 5: TrainingHistory([evaluate(1, 1.51)])}) == 4

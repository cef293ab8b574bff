"""Settings that make no sense are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from specgym.agents.learning.config import LearningConfig, LearningPlan
from specgym.env.common.errors import LimitError, ParameterError, UnknownNameError


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"steps": 0}, LimitError, "steps must be 1 or more; got 0"),
            ({"evaluations": 0}, LimitError, "evaluations must be 1 or more; got 0"),
            ({"algorithm": "pro"}, UnknownNameError, "Did you mean ppo"),
            ({"form": "increment"}, UnknownNameError, "Did you mean increments"),
        ],
    )
    def test_an_invalid_plan_is_refused(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            LearningPlan(**change)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"episodes": 0}, "config.episodes must be 1 or more; got 0"),
            ({"hidden": (8, 0)}, "config.hidden must be 1 or more; got 0"),
            ({"discount": 1.0}, "config.discount must be 0 or more and under 1; got 1.0"),
            ({"learning_rate": float("nan")}, "config.learning_rate must be over 0; got nan"),
            ({"entropy": -1.0}, "config.entropy must be 0 or more; got -1.0"),
            ({"minibatch": 100}, r"config.minibatch must divide config.episodes \* config.rounds = 8192; got 100"),
        ],
    )
    def test_an_invalid_setting_is_refused(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises((LimitError, ParameterError), match=message):
            LearningConfig(**change)

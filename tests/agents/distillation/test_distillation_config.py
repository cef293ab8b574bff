"""Settings are checked, and stored by the names that earlier runs know."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specgym.agents.distillation.distillation_config import DistillationConfig
from specgym.env.common.errors import LimitError, ParameterError


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"shard_conversations": 0}, LimitError, "shard_conversations must be 1 or more; got 0."),
        ({"held_out": 1}, ParameterError, "held_out must be 2 or more; got 1."),
        ({"kind": "eager"}, ParameterError, "kind must be feature or causal; got 'eager'."),
    ],
)
def test_a_setting_outside_its_range_is_named(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DistillationConfig(**changes)  # type: ignore[arg-type]


def test_checkpoints_of_earlier_runs_know_the_settings() -> None:
    """A checkpoint of an earlier version can be continued only if its settings are the same."""
    training = {"batch_tokens": 2048, "checkpoint_minutes": 2.0, "looks": 10, "seed": 0, "step_decay": 0.8, "steps": 3}
    training |= {"updates": None, "warm_up": 0.03, "weight_decay": 0.01}
    generation = {"conversations": 1500, "given_share": 0.6, "greedy_share": 0.5, "max_answer_tokens": 256}
    generation |= {"max_text_tokens": 256, "max_user_tokens": 80, "seed": 1000, "slots": 96, "user_temperature": 0.8}
    shared = {"generation": generation, "held_out": 20, "keep_states": True, "shard_conversations": 500}
    feature = {
        "kind": "feature",
        "feature": {"begin": "random", "feature_layers": (), "layers": 1, "vocabulary": 8192},
        "feature_training": training | {"epochs": 6, "learning_rate": 0.0015},
    }
    shape = {"hidden_size": 160, "intermediate_size": 448, "heads": 5, "layers": 4, "strangers": 1024}
    causal = {
        "kind": "causal",
        "causal": shape | {"vocabulary": 8192},
        "causal_training": training | {"epochs": 12, "learning_rate": 0.002},
    }
    config = DistillationConfig()
    assert config.learning_settings() == shared | feature | {"shelf": False}
    assert replace(config, kind="causal").learning_settings() == shared | causal | {"shelf": False}
    on_device = replace(config, keep_states=False).learning_settings()
    assert on_device == shared | feature | {"shelf": True, "keep_states": False}

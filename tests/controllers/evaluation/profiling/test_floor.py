"""The floor is what arithmetic says, from the best rates of the machine."""

from __future__ import annotations

import pytest
import torch

from specgym.controllers.evaluation.profiling.floor import (
    Floor,
    MachineRates,
    draft_shape,
    last_level_cache,
    model_shape,
    multiply_rate,
    read_rate,
)
from specgym.env.drafts.network import FeatureDraftNetwork
from specgym.env.models.target import TargetModel
from tests.support.tiny_models import (
    SHAPE,
    feature_draft,
    make_draft,
    make_prompt,
    tiny_target,
)

CPU = torch.device("cpu")
RATES = MachineRates(100.0, 10.0, 1, 1)
TEXT = make_prompt(3, 400)


@pytest.fixture(scope="module")
def target() -> TargetModel:
    return tiny_target(dtype=torch.float32, max_position_embeddings=256)


class TestFloor:
    def test_a_known_model_reads_and_computes_what_arithmetic_says(self, target: TargetModel) -> None:
        hidden, middle, layers, vocabulary = 32, 48, 2, SHAPE["vocab_size"]
        matrices = layers * (hidden * (32 + 2 * 16) + 32 * hidden + 3 * hidden * middle)
        shape = model_shape(target)
        assert shape.matrices == matrices
        assert shape.head == vocabulary * hidden
        assert shape.weight_bytes == 4 * (matrices + vocabulary * hidden + hidden * (2 * layers + 1))
        assert shape.table_bytes == 4 * vocabulary * hidden
        assert shape.state_bytes == shape.kept_bytes == 4 * layers * 2 * 16
        floor = shape.floor(RATES, rows=5, context=100)
        assert floor.bytes == shape.weight_bytes + 100 * shape.state_bytes
        assert floor.operations == 5 * (2 * (matrices + vocabulary * hidden) + 101 * 4 * layers * 32)
        assert shape.floor(RATES, 5, 100, kept=1).operations == floor.operations - 4 * 2 * vocabulary * hidden

    def test_a_head_that_shares_the_table_is_read_as_the_head(self) -> None:
        tied = model_shape(tiny_target(dtype=torch.bfloat16, tie_word_embeddings=True))
        free = model_shape(tiny_target(dtype=torch.bfloat16))
        assert (tied.weight_bytes, tied.head, tied.matrices) == (free.weight_bytes, free.head, free.matrices)
        assert (tied.table_bytes, free.table_bytes) == (0, 2 * SHAPE["vocab_size"] * 32)

    @torch.inference_mode()
    def test_states_count_as_the_model_has_them_and_as_the_cache_keeps_them(self) -> None:
        """Which is float32 for half precision on a CPU."""
        half = tiny_target(dtype=torch.bfloat16)
        for shape in (model_shape(half), draft_shape(feature_draft(half))):
            assert shape is not None
            assert shape.kept_bytes == 2 * shape.state_bytes > 0
        half.extend_all(TEXT[:8])
        kept = sum(part[:, :, :1].nbytes for layer in half.cache.layers for part in (layer.keys, layer.values))
        assert model_shape(half).kept_bytes == kept

    @pytest.mark.parametrize("layers", [(), (0, 1)])
    def test_a_feature_draft_is_all_its_weights_but_the_fusion(self, target: TargetModel, layers: tuple[int]) -> None:
        draft = feature_draft(target, feature_layers=layers)
        whole = FeatureDraftNetwork(draft.network.config)
        shape = draft_shape(draft)
        assert shape is not None
        numbers = sum(weight.numel() for name, weight in whole.named_parameters() if not name.startswith("reduce"))
        assert shape.weight_bytes == 4 * numbers
        assert shape.head == whole.head.weight.numel()

    def test_lookup_has_no_floor(self, target: TargetModel) -> None:
        assert draft_shape(make_draft("lookup", target)) is None

    def test_the_longer_of_reading_and_computing_counts(self) -> None:
        assert Floor.of(200, 10, RATES) == Floor(2.0, "memory", 200, 10)
        assert Floor.of(200, 40, RATES) == Floor(4.0, "arithmetic", 200, 40)

    @pytest.mark.parametrize("swapped", [False, True])
    def test_of_two_measurements_the_higher_rates_count(self, swapped: bool) -> None:
        one, other = MachineRates(100.0, 10.0, 1, 2), MachineRates(90.0, 30.0, 1, 2)
        assert (other.best(one) if swapped else one.best(other)) == MachineRates(100.0, 30.0, 1, 2)

    def test_rates_are_measured(self) -> None:
        assert last_level_cache(CPU) >= 2**18
        assert read_rate(2**22, CPU) > 0
        assert multiply_rate(torch.float32, CPU) > 0

"""A round's account is whole, its operators have names, and its floor is what arithmetic says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from specgym.controllers.evaluation.profiling.floor import Work, draft_shape, model_shape
from specgym.controllers.evaluation.profiling.memory import (
    forget_peak,
    library_pages,
    memory_held,
    memory_owned,
    memory_peak,
)
from specgym.controllers.evaluation.profiling.operators import (
    GROUPS,
    OTHER,
    OVERHEAD,
    Operator,
    group_of,
    record_operators,
    seconds_by_group,
)
from specgym.controllers.evaluation.profiling.profiled_rounds import PARTS, WORKING, Accountant, AccountGrid, tree_of
from specgym.controllers.evaluation.profiling.rates import MachineRates, last_level_cache, multiply_rate, read_rate
from specgym.controllers.registry import make_controller
from specgym.env.common.errors import ParameterError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts.network import FeatureDraftNetwork
from specgym.env.models.target import TargetModel
from specgym.env.tree.rounds import Request
from tests.support.tiny_models import (
    DRAFT_KINDS,
    SHAPE,
    causal_draft,
    feature_draft,
    make_draft,
    make_prompt,
    tiny_target,
)

CPU = torch.device("cpu")
GRID = AccountGrid((1, 2, 8, 16), (24, 64))
TEXT = make_prompt(3, 400)


@pytest.fixture(scope="module")
def target() -> TargetModel:
    return tiny_target(dtype=torch.float32, max_position_embeddings=256)


def accountant(target: TargetModel, kind: str, grid: AccountGrid = GRID) -> Accountant:
    return Accountant(LiveDecoder(target, make_draft(kind, target)), TEXT, grid, make_controller("history"))


class TestRounds:
    @pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 16, 32, 64, 128])
    def test_a_tree_has_exactly_the_rows_asked_for(self, target: TargetModel, rows: int) -> None:
        decoder = LiveDecoder(target, causal_draft(target))
        decoder.start(Request(make_prompt(rows), 200))
        outcome = decoder.round(tree_of(rows))
        assert outcome.drafted + 1 == rows
        assert len(outcome.level_rows) == tree_of(rows).max_depth

    @pytest.mark.parametrize("kind", DRAFT_KINDS)
    def test_every_size_is_timed_and_its_parts_are_the_whole(self, target: TargetModel, kind: str) -> None:
        found = accountant(target, kind)
        before = found.decoder.merged
        rounds = list(found.timed(24))
        assert found.decoder.merged is before
        assert sorted(each.rows for each in rounds) == sorted(3 * GRID.rows)
        for each in rounds:
            assert tuple(each.parts) == PARTS
            assert min(each.parts.values()) >= 0
            assert each.seconds == sum(each.parts.values()) > 0
            assert 24 <= each.position < 24 + GRID.room
            assert len(each.levels) == tree_of(each.rows).max_depth
            assert all((rows > 0) == (kind != "lookup") for rows, _ in each.levels)
            assert sum(seconds for _, seconds in each.levels) <= each.parts["draft"] + 1e-6

    @pytest.mark.parametrize(
        ("dtype", "kind"),
        [(torch.float32, "causal"), (torch.float32, "lookup"), (torch.bfloat16, "feature")],
        ids=str,
    )
    def test_every_operator_of_a_round_has_a_group(self, dtype: torch.dtype, kind: str) -> None:
        """In the precision that has operators of its own on a CPU, too."""
        grid = AccountGrid((1, 8), (24,))
        rounds = list(accountant(tiny_target(dtype=dtype), kind, grid).profiled(24))
        assert {each.rows for each in rounds} == {1, 8}
        for each in rounds:
            assert each.unknown == {}
            assert tuple(each.groups) == WORKING
            assert sum(sum(groups.values()) for groups in each.groups.values()) == pytest.approx(each.seconds)
            assert each.groups["verify"]["linears"] > 0
            assert each.groups["verify"]["attention"] > 0
            assert each.groups["verify"]["moves"] > 0
            assert (each.groups["draft"]["linears"] > 0) == (each.rows > 1 and kind != "lookup")
            assert each.groups["commit"]["linears"] == 0

    def test_a_controller_is_asked_and_changes_nothing(self, target: TargetModel) -> None:
        found = accountant(target, "causal", AccountGrid((4,), (24,)))
        assert all(each.parts["controller"] > 0 and each.rows == 4 for each in found.timed(24))

    @pytest.mark.parametrize("values", [(), (0, 1), (2, 2), (4, 1), (-1,)])
    @pytest.mark.parametrize("name", ["rows", "contexts"])
    def test_what_cannot_be_accounted_for_is_refused(self, name: str, values: tuple[int, ...]) -> None:
        with pytest.raises(ParameterError, match=f"{name} must be positive and ascend; got {re.escape(str(values))}"):
            AccountGrid(**{name: values})

    def test_contexts_that_do_not_fit_are_refused_or_left_out(self, target: TargetModel) -> None:
        room = GRID.room
        with pytest.raises(ParameterError, match=f"contexts must leave {room} tokens of the {63 + room}"):
            GRID.check_fits(63 + room)
        assert GRID.fitting(63 + room).contexts == (24,)
        assert GRID.fitting(64 + room) == GRID
        with pytest.raises(ParameterError, match="Name fewer or smaller rows"):
            GRID.fitting(room)
        with pytest.raises(ParameterError, match="Expected a text of more than 64 tokens; got 64"):
            Accountant(LiveDecoder(target, causal_draft(target)), TEXT[:64], GRID, make_controller("history"))


class TestOperators:
    @pytest.mark.parametrize(
        ("name", "group"),
        [
            ("aten::addmm", "linears"),
            ("mkldnn::_linear_pointwise", "linears"),
            ("aten::scaled_dot_product_attention", "attention"),
            ("aten::mul_", "element-wise"),
            ("aten::_fused_rms_norm", "element-wise"),
            ("aten::copy_", "moves"),
            ("aten::topk", "logits"),
            ("aten::as_strided", OVERHEAD),
            ("cudaLaunchKernel", OVERHEAD),
            ("mine::secret", OTHER),
            ("aten::never_heard_of", OTHER),
        ],
    )
    def test_names_tell_the_group(self, name: str, group: str) -> None:
        assert group_of(name) == group

    def test_what_is_recorded_is_what_ran(self) -> None:
        left, right = torch.rand(64, 64), torch.rand(64, 64)
        result, operators = record_operators(lambda: torch.mm(left, right).exp_(), CPU)
        assert torch.equal(result, (left @ right).exp())
        assert [each.name for each in operators if each.name in ("aten::mm", "aten::exp_")] == [
            "aten::mm",
            "aten::exp_",
        ]
        assert all(each.seconds >= 0 for each in operators)

    def test_a_stretch_is_shared_out_without_a_rest(self) -> None:
        run = [Operator("aten::mm", 1.0, 0.5), Operator("x::y", 2.0, 0.25), Operator("aten::mm", 9.0, 1.0)]
        found, unknown = seconds_by_group(run, 1.0, 3.0)
        assert found == dict.fromkeys(GROUPS, 0.0) | {"linears": 0.5, OTHER: 0.25, OVERHEAD: 1.25}
        assert unknown == {"x::y": 0.25}
        busy, _ = seconds_by_group(run, 1.0, 2.25)
        assert busy[OVERHEAD] == 0.5
        late, _ = seconds_by_group(run, 8.75, 9.25)  # its work goes on past the end
        assert late["linears"] == sum(late.values()) == 0.5


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
        work = shape.work(rows=5, context=100)
        assert work.bytes == shape.weight_bytes + 100 * shape.state_bytes
        assert work.operations == 5 * (2 * (matrices + vocabulary * hidden) + 101 * 4 * layers * 32)
        assert shape.work(5, 100, kept=1).operations == work.operations - 4 * 2 * vocabulary * hidden

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
        rates = MachineRates(100.0, 10.0, 1, 1)
        assert (Work(200, 10).seconds(rates), Work(200, 10).bound(rates)) == (2.0, "memory")
        assert (Work(200, 40).seconds(rates), Work(200, 40).bound(rates)) == (4.0, "arithmetic")
        assert Work(1, 2) + Work(3, 4) == Work(4, 6)

    @pytest.mark.parametrize("swapped", [False, True])
    def test_of_two_measurements_the_higher_rates_count(self, swapped: bool) -> None:
        one, other = MachineRates(100.0, 10.0, 1, 2), MachineRates(90.0, 30.0, 1, 2)
        assert (other.best(one) if swapped else one.best(other)) == MachineRates(100.0, 30.0, 1, 2)

    def test_rates_are_measured(self) -> None:
        assert last_level_cache(CPU) >= 2**18
        assert read_rate(2**22, CPU) > 0
        assert multiply_rate(torch.float32, CPU) > 0


def test_memory_is_told_in_bytes() -> None:
    """What is written is held, and the peak remembers it."""
    forget_peak(CPU)
    before, size = memory_held(CPU), 2**27
    held = torch.ones(size // 4)
    after = memory_held(CPU)
    del held
    peak = memory_peak(CPU)
    if before is None or after is None or peak is None:
        pytest.skip("this system does not tell")
    assert after - before > 0.9 * size
    libraries = library_pages()
    assert libraries is not None
    assert 2**20 < libraries < after - size  # torch's own are some of all that is held
    assert peak - before > 0.9 * size


def test_pages_of_files_are_held_but_are_not_the_processes_own(tmp_path: Path) -> None:
    size = 2**26
    (tmp_path / "file").write_bytes(bytes(size))
    before, own = memory_held(CPU), memory_owned(CPU)
    mapped = np.memmap(tmp_path / "file", np.uint8, mode="r")
    assert mapped.max() == 0  # looks at all of it
    after, own_after = memory_held(CPU), memory_owned(CPU)
    if before is None or after is None or own is None or own_after is None:
        pytest.skip("this system does not tell")
    assert after - before > 0.9 * size
    assert own_after - own < 0.1 * size
    made = np.ones(size, np.uint8)
    last = memory_owned(CPU)
    assert last is not None
    assert last - own_after > 0.9 * made.nbytes

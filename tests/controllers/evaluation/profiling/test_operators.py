"""Operators are recorded, sorted into groups by name, and their times add up."""

from __future__ import annotations

import pytest
import torch

from specgym.controllers.evaluation.profiling.operators import (
    GROUPS,
    OTHER,
    OVERHEAD,
    Operator,
    group_of,
    record_operators,
    seconds_by_group,
)

CPU = torch.device("cpu")


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
    def test_the_name_decides_the_group(self, name: str, group: str) -> None:
        assert group_of(name) == group

    def test_the_operators_that_ran_are_recorded(self) -> None:
        left, right = torch.rand(64, 64), torch.rand(64, 64)
        result, operators = record_operators(lambda: torch.mm(left, right).exp_(), CPU)
        assert torch.equal(result, (left @ right).exp())
        assert [each.name for each in operators if each.name in ("aten::mm", "aten::exp_")] == [
            "aten::mm",
            "aten::exp_",
        ]
        assert all(each.seconds >= 0 for each in operators)

    def test_the_times_of_an_interval_add_up_to_it(self) -> None:
        run = [Operator("aten::mm", 1.0, 0.5), Operator("x::y", 2.0, 0.25), Operator("aten::mm", 9.0, 1.0)]
        groups, unknown = seconds_by_group(run, 1.0, 3.0)
        assert groups == dict.fromkeys(GROUPS, 0.0) | {"linears": 0.5, OTHER: 0.25, OVERHEAD: 1.25}
        assert unknown == {"x::y": 0.25}
        busy, _ = seconds_by_group(run, 1.0, 2.25)
        assert busy[OVERHEAD] == 0.5
        late, _ = seconds_by_group(run, 8.75, 9.25)  # its work goes on past the end
        assert late["linears"] == sum(late.values()) == 0.5

"""Packed linear layers give the numbers of plain ones, and a row has the same bits alone and among others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from specgym.env.models.fast.layer import MOST_ROWS, has_kernel, padded_rows
from specgym.env.models.fast.native_matrix import can_run
from specgym.env.models.fast.packed import Packing, Projection, best_packing, can_pack, row_invariant

CPU = torch.device("cpu")
library = pytest.mark.skipif(not can_pack(torch.bfloat16, CPU), reason="this machine has no packed bfloat16 kernels")
native = pytest.mark.skipif(not can_run(64), reason="this machine does not run or compile such functions")
PACKED = [pytest.param("library", marks=library), pytest.param("native", marks=native)]


def layers(*outs: int, features: int = 96, bias: bool = False, dtype: torch.dtype = torch.bfloat16) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(features, out, bias, dtype=dtype) for out in outs]


def rows(count: int, features: int = 96, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(1)).to(dtype)


@torch.inference_mode()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("packing", ["none", *PACKED])
def test_a_projection_gives_its_layers_results_side_by_side(packing: Packing, bias: bool) -> None:
    each, x = layers(24, 40, bias=bias), rows(5)
    expected = torch.cat([layer(x) for layer in each], dim=-1)
    torch.testing.assert_close(Projection(each, packing)(x), expected, rtol=0.01, atol=0.01)


@torch.inference_mode()
def test_a_projection_that_is_not_packed_follows_its_layers() -> None:
    (layer,) = layers(24, dtype=torch.float64)
    projection, x = Projection([layer], "none"), rows(2, dtype=torch.float64)
    layer.weight.mul_(2)
    assert torch.equal(projection(x), layer(x))


@torch.inference_mode()
@pytest.mark.parametrize("features", [96, 576, 1536])
@pytest.mark.parametrize("packing", PACKED)
def test_a_packed_row_has_the_same_bits_alone_and_among_others(packing: Packing, features: int) -> None:
    projection, x = Projection(layers(256, features=features), packing), rows(256, features)
    alone = torch.cat([projection(row[None]) for row in x])
    for company in (2, 3, 7, 11, 16, 17, 50, 64, 65, 200):  # also with rows that are made up
        for text in (False, True):
            together = torch.cat([projection(part, is_text=text) for part in x.split(company)])
            assert torch.equal(together, alone)


def test_texts_of_all_lengths_are_filled_up_to_few() -> None:
    lengths = {rows: padded_rows(rows) for rows in range(1, 1025)}
    assert len(set(lengths.values())) == 40
    assert all(0 <= filled - rows < max(8, rows / 8) for rows, filled in lengths.items())


@library
@torch.inference_mode()
def test_a_text_is_multiplied_by_kernels_that_others_use_and_a_tree_by_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    projection, multiplied = Projection(layers(256), "library"), list[int]()
    operator = torch.ops.mkldnn._linear_pointwise

    def recorded(x: torch.Tensor, *more: object) -> torch.Tensor:
        multiplied.append(len(x))
        return operator(x, *more)  # type: ignore[no-any-return]

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", recorded)
    for length in (17, 24, 146, 300):
        assert len(projection(rows(length))) == length
    assert multiplied == [24, 24, 160, 320]
    multiplied.clear()
    for size in (2, 9, 17, 33, MOST_ROWS - 1):
        assert len(projection(rows(size), is_text=False)) == size
    assert multiplied == [2, 9, 17, 33, MOST_ROWS - 1]


@pytest.mark.parametrize("text", [False, True])
def test_a_step_of_plain_decoding_is_one_row(text: bool) -> None:
    assert has_kernel(1, text)
    assert has_kernel(17, text) != text
    assert not has_kernel(MOST_ROWS + 1, text)


def test_a_kernel_whose_results_depend_on_other_rows_is_noticed() -> None:
    assert row_invariant(lambda x: x * 2, 64, 64)
    assert not row_invariant(lambda x: x * len(x), 64, 64)
    assert not row_invariant(lambda x: x * (1 + (len(x) == 1)), 64, 64)
    assert row_invariant(lambda x: x * (1 + (len(x) == 1)), 64, 64, min_rows=2)


def test_other_precisions_are_not_packed() -> None:
    assert not can_pack(torch.float64, CPU)


def test_what_our_functions_are_not_written_for_goes_another_way() -> None:
    assert best_packing(torch.bfloat16, CPU, 24, 96) == ("library" if can_pack(torch.bfloat16, CPU) else "none")
    assert best_packing(torch.bfloat16, CPU, 64, 96, 100) != "native"
    assert best_packing(torch.float32, CPU, 64, 96) == "none"

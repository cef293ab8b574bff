"""Packed linear layers: the numbers of plain ones, and the same ones for a row alone and in company."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from env.models.layer import MOST_ROWS, computed_rows
from env.models.packed import Projection, can_pack, row_invariant

CPU = torch.device("cpu")
packing = pytest.mark.skipif(not can_pack(torch.bfloat16, CPU), reason="this machine has no packed bfloat16 kernels")


def layers(*outs: int, features: int = 96, bias: bool = False, dtype: torch.dtype = torch.bfloat16) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(features, out, bias, dtype=dtype) for out in outs]


def rows(count: int, features: int = 96, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(1)).to(dtype)


@torch.inference_mode()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("pack", [False, pytest.param(True, marks=packing)])
def test_a_projection_gives_its_layers_results_side_by_side(pack: bool, bias: bool) -> None:
    each, x = layers(24, 40, bias=bias), rows(5)
    expected = torch.cat([layer(x) for layer in each], dim=-1)
    torch.testing.assert_close(Projection(each, pack)(x), expected, rtol=0.01, atol=0.01)


@torch.inference_mode()
def test_a_projection_that_is_not_packed_follows_its_layers() -> None:
    (layer,) = layers(24, dtype=torch.float64)
    projection, x = Projection([layer], pack=False), rows(2, dtype=torch.float64)
    layer.weight.mul_(2)
    assert torch.equal(projection(x), layer(x))


@packing
@torch.inference_mode()
@pytest.mark.parametrize("features", [96, 576, 1536])
def test_a_packed_row_has_the_same_bits_alone_and_in_company(features: int) -> None:
    projection, x = Projection(layers(256, features=features), pack=True), rows(256, features)
    alone = torch.cat([projection(row[None]) for row in x])
    for company in (2, 3, 7, 11, 16, 17, 50, 64, 65, 200):  # also with rows that are made up, and in pieces
        assert torch.equal(torch.cat([projection(part) for part in x.split(company)]), alone)


def test_few_kernels_serve_texts_and_trees_of_all_lengths() -> None:
    numbers = [computed_rows(rows) for rows in range(1, MOST_ROWS + 1)]
    assert len(set(numbers)) == 24
    assert all(rows <= number <= min(1.25 * rows, MOST_ROWS) for rows, number in enumerate(numbers, start=1))
    assert numbers[:16] == list(range(1, 17))


@packing
@torch.inference_mode()
def test_no_more_rows_are_multiplied_at_once_than_a_kernel_was_tried_on(monkeypatch: pytest.MonkeyPatch) -> None:
    projection, multiplied = Projection(layers(256), pack=True), list[int]()
    operator = torch.ops.mkldnn._linear_pointwise

    def recorded(x: torch.Tensor, *more: object) -> torch.Tensor:
        multiplied.append(len(x))
        return operator(x, *more)  # type: ignore[no-any-return]

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", recorded)
    assert len(projection(rows(146))) == 146
    assert multiplied == [64, 64, 20]


def test_a_kernel_that_depends_on_the_company_is_found_out() -> None:
    assert row_invariant(lambda x: x * 2, 64, 64)
    assert not row_invariant(lambda x: x * len(x), 64, 64)
    assert not row_invariant(lambda x: x * (1 + (len(x) == 1)), 64, 64)
    assert row_invariant(lambda x: x * (1 + (len(x) == 1)), 64, 64, least=2)


def test_other_precisions_are_not_packed() -> None:
    assert not can_pack(torch.float64, CPU)

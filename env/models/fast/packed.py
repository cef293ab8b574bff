"""Linear layers in the layout that the CPU's bfloat16 kernels read fastest; layers of one input become one matrix.

In a forward of a single text, reading the weights takes most of the time. There are three ways to multiply; a machine
uses the first one that it has:

- our compiled functions, see `specgym.env.models.fast.native`;
- oneDNN's operators on weights in its own blocks. Inductor's freezing uses them in place of linear layers. They are not
  part of torch's public interface, so they are tried first;
- torch's plain linear, which rearranges weights on every call. That takes about half of the time.

A packed weight replaces the original in memory where the original is mapped from a file (see
`specgym.env.kernels.moving`). This goes layer by layer, so at most one layer is in memory twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from specgym.env.common.errors import ParameterError
from specgym.env.kernels.moving import release_pages
from specgym.env.models.fast.layer import MOST_ROWS, has_kernel, project
from specgym.env.models.fast.native_matrix import Linear, NativeMatrix, can_run, join_linears

Packing: TypeAlias = Literal["native", "int8", "library", "in place", "none"]
"""layout of weights: for our compiled functions in bfloat16, the same in eight bits, for oneDNN, or unchanged, for our
compiled functions or for torch's"""

_LEVEL = 16  # a level of a tree, or the tokens of a round, have at most this many rows; more rows are a text
_RESULTS = 2**18  # results on which a kernel is tried


class Projection:
    """Linear layers that read the same input, as one layer whose results stand side by side.

    Args:
        layers: the layers.
        packing: one that the machine has, see `best_packing`.

    Attributes:
        outs: number of results.
        native: the weights for our compiled functions; then the following attributes are empty.
        weights: of the layers, or a single packed one.
        biases: of the layers, or a single one; None for a layer without a bias.
        min_rows: fewest rows of a call if the weight is packed for oneDNN, else 0. It is 2 where a kernel adds in
            another order for a single row (seen for long rows on AVX-512): a tree must be verified with the same
            numbers as plain decoding. There, a single row is computed twice.
    """

    def __init__(self, layers: Sequence[Linear | nn.Linear], packing: Packing) -> None:
        self.weights: list[Tensor] = []
        self.biases: list[Tensor | None] = []
        self.native: NativeMatrix | None = None
        self.min_rows = 0
        parts = [Linear(layer.weight.detach(), None if layer.bias is None else layer.bias.detach()) for layer in layers]
        self.outs = sum(len(part.weight) for part in parts)
        if packing == "none":
            self.weights, self.biases = [part.weight for part in parts], [part.bias for part in parts]
            return
        if packing == "library":
            # Trying the kernel takes memory as well, so it comes before there is a copy.
            self.min_rows = _min_rows(parts[0].weight.shape[1], self.outs, torch.get_num_threads())
            weight, bias = _packed(parts)
            self.weights, self.biases = [weight], [bias]
        else:
            with torch.inference_mode():
                self.native = NativeMatrix(parts, eight_bits=packing == "int8", in_place=packing == "in place")
        for part in parts if packing != "in place" else ():
            release_pages(part.weight)

    def __call__(self, x: Tensor, *, is_text: bool | None = None) -> Tensor:
        """Multiplies `[rows, in]` to `[rows, all outs]`.

        Args:
            x: the rows.
            is_text: whether they are a text, see `has_kernel`; by default if they are many.
        """
        if self.native is not None:
            return self.native(x)
        row_kernel = has_kernel(len(x), len(x) > _LEVEL if is_text is None else is_text)
        return project(x, self.weights, self.biases, self.min_rows, row_kernel)


def best_packing(dtype: torch.dtype, device: torch.device, dim: int, *widths: int, eight_bits: bool = False) -> Packing:
    """Returns the fastest packing that this machine has for a model.

    Args:
        dtype: the model's.
        device: the model's.
        dim: width of an attention head.
        widths: widths of the inputs of linear layers.
        eight_bits: whether weights are rounded to eight bits.

    Raises:
        ParameterError: eight bits are asked for, and this machine has no functions for them.
    """
    if dtype == torch.bfloat16 and device.type == "cpu" and can_run(dim, *widths, eight_bits=eight_bits):
        return "int8" if eight_bits else "native"
    if eight_bits:
        raise ParameterError(
            "int8 needs compiled functions: a CPU with AVX2 or AVX-512 BF16, a C++ compiler, and layers that they "
            "support (heads of 32, 64, 96 or 128 numbers, widths that are multiples of 32; these have "
            f"{dim}, and {', '.join(map(str, sorted(widths)))}). Use bfloat16."
        )
    return "library" if can_pack(dtype, device) else "none"


@functools.cache
def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN multiplies `dtype` on `device` with rearranged weights here, and does so correctly."""
    if dtype != torch.bfloat16 or device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    layer = nn.Linear(64, 48, dtype=dtype, device=device)
    x = torch.linspace(-1, 1, 3 * 64, device=device).view(3, 64).to(dtype)
    try:
        with torch.inference_mode():
            weight, bias = _packed([Linear(layer.weight, layer.bias)])
            result = project(x, [weight], [bias], 1, True)
            return bool(torch.allclose(result.float(), layer(x).float(), rtol=0.02, atol=0.02))
    except (AttributeError, RuntimeError, TypeError):  # no such operator, or with another signature
        return False


def row_invariant(call: Callable[[Tensor], Tensor], features: int, outs: int, min_rows: int = 1) -> bool:
    """Whether `call` gives a row the same bits whatever other rows there are, tried on random rows.

    A kernel that adds in another order differs in few results only, so many results are compared.

    Args:
        call: maps `bfloat16[rows, features]` to `[rows, outs]`.
        features: width of its input.
        outs: width of its output.
        min_rows: fewest rows of a call.
    """
    rows = max(_RESULTS // outs // MOST_ROWS, 1) * MOST_ROWS
    x = torch.randn(rows, features, generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(torch.bfloat16)
    counts = [2**power for power in range(MOST_ROWS.bit_length()) if 2**power >= min_rows]
    reference, *others = (torch.cat([call(part) for part in torch.split(x, count)]) for count in counts)
    return all(torch.equal(reference, other) for other in others)


@torch.inference_mode()
def _packed(layers: Sequence[Linear]) -> Linear:
    """Joins layers and rearranges their weights for oneDNN."""
    weight, bias = join_linears(layers)
    # The kernel for one row matters most; its layout serves more rows as well.
    return Linear(torch.ops.mkldnn._reorder_linear_weight(weight, 1), bias)


@functools.cache
@torch.inference_mode()
def _min_rows(features: int, outs: int, threads: int) -> int:
    """Returns `Projection.min_rows` of a shape. Which kernel runs depends on the number of threads as well."""
    weight, _ = _packed(
        [Linear(nn.Linear(features, outs, bias=False, dtype=torch.bfloat16, device="cpu").weight, None)]
    )

    def call(x: Tensor) -> Tensor:
        return project(x, [weight], [None], 1, True)

    return next((count for count in (1, 2) if row_invariant(call, features, outs, count)), 1)

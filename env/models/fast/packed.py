"""Linear layers in the layout that the CPU's bfloat16 kernels read fastest, one matrix for several layers of one input.

A linear layer of a single text reads its weights once a forward, and little else takes time. There are three ways, the
first that a machine has: our own compiled functions (see `specgym.env.models.fast.native`); oneDNN's operators
on weights in blocks of its own; and torch's plain linear. The last one
rearranges weights on every call, which takes about half of the time.
oneDNN's operators are those that Inductor's freezing puts in place of linear layers. They are not part of torch's
public interface, so they are tried first.

A packed weight takes the place of the layers' own in memory, where those are still as they stand in a file (see
`specgym.env.models.fast.resident`): one layer at a time, so that no more than one is there twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import nn

from specgym.env.common.errors import ParameterError
from specgym.env.models.fast.layer import MOST_ROWS, has_kernel, project
from specgym.env.models.fast.native import NativeMatrix, can_run
from specgym.env.models.fast.resident import return_pages

Packing: TypeAlias = Literal["native", "int8", "library", "none"]
"""where weights are kept: rearranged for our own functions, as they are or rounded to eight bits; rearranged for
oneDNN's; or not rearranged"""

_LEVEL = 16  # rows that a level of a tree or the tokens of a round have at most; more of them are a text
_RESULTS = 2**18  # numbers that a kernel is tried on


class Projection:
    """Linear layers that read the same input, as one.

    Args:
        layers: their results stand side by side.
        packing: one that the machine has, see `best_packing`.

    Attributes:
        native: the weights, if our own functions read them; then there is none of the following.
        weights: of the layers, or one that is packed.
        biases: likewise, None for a layer without one.
        least: 0 if nothing is packed; else rows of a call at least: 2 where a kernel adds up in another order for a
            single row (seen of long rows on AVX-512), since a tree is to be verified with the very numbers of plain
            decoding. A single row goes twice.
    """

    def __init__(self, layers: Sequence[nn.Linear], packing: Packing) -> None:
        self.weights: list[torch.Tensor] = []
        self.biases: list[torch.Tensor | None] = []
        self.native: NativeMatrix | None = None
        self.least = 0
        if packing == "none":
            self.weights = [layer.weight.detach() for layer in layers]
            self.biases = [None if layer.bias is None else layer.bias.detach() for layer in layers]
            return
        if packing in ("native", "int8"):
            with torch.inference_mode():
                self.native = NativeMatrix(*_joined(layers), eight_bits=packing == "int8")
        else:
            # Trying the kernel takes memory too: before there is a copy.
            outs = sum(layer.out_features for layer in layers)
            self.least = _least(layers[0].in_features, outs, torch.get_num_threads())
            weight, bias = _packed(layers)
            self.weights, self.biases = [weight], [bias]
        for layer in layers:
            return_pages(layer.weight)

    def __call__(self, x: torch.Tensor, *, text: bool | None = None) -> torch.Tensor:
        """`[rows, in]` to `[rows, all outs]`.

        Args:
            x: the rows.
            text: whether they are a text, see `has_kernel`; by default if they are many.
        """
        if self.native is not None:
            return self.native(x)
        own = has_kernel(len(x), len(x) > _LEVEL if text is None else text)
        return project(x, self.weights, self.biases, self.least, own)


def best_packing(dtype: torch.dtype, device: torch.device, dim: int, *widths: int, eight_bits: bool = False) -> Packing:
    """The fastest packing that this machine has for a model.

    Args:
        dtype: the model's.
        device: the model's.
        dim: width of an attention head.
        widths: of the inputs of linear layers.
        eight_bits: whether weights are to be rounded to eight bits.

    Raises:
        ParameterError: they are, and this machine has no functions for that.
    """
    if dtype == torch.bfloat16 and device.type == "cpu" and can_run(dim, *widths, eight_bits=eight_bits):
        return "int8" if eight_bits else "native"
    if eight_bits:
        raise ParameterError(
            "int8 needs compiled functions: a CPU with AVX2 or AVX-512 BF16, a C++ compiler, and layers that they know "
            f"(heads of 32, 64, 96 or 128 numbers, widths that are multiples of 32; these have {dim}, and "
            f"{', '.join(map(str, sorted(widths)))}). Use bfloat16."
        )
    return "library" if can_pack(dtype, device) else "none"


@functools.cache
def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this machine multiplies `dtype` on `device` by rearranged weights, and does so correctly."""
    if dtype != torch.bfloat16 or device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    layer = nn.Linear(64, 48, dtype=dtype)
    x = torch.linspace(-1, 1, 3 * 64).view(3, 64).to(dtype)
    try:
        with torch.inference_mode():
            weight, bias = _packed([layer])
            found = project(x, [weight], [bias], 1, True)
            return bool(torch.allclose(found.float(), layer(x).float(), rtol=0.02, atol=0.02))
    except (AttributeError, RuntimeError, TypeError):  # no such operator, or with another signature
        return False


def row_invariant(call: Callable[[torch.Tensor], torch.Tensor], features: int, outs: int, least: int = 1) -> bool:
    """Whether `call` gives every row the same bits in any company of `least` rows or more, tried on random rows.

    Where it does not, it is another order of additions, which shows in few results: many are tried.

    Args:
        call: `bfloat16[rows, features]` to `[rows, outs]`.
        features: width of its input.
        outs: width of its output.
        least: rows at a time, at least.
    """
    rows = max(_RESULTS // outs // MOST_ROWS, 1) * MOST_ROWS
    x = torch.randn(rows, features, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    reference, *others = (
        torch.cat([call(x[first : first + count]) for first in range(0, rows, count)])
        for count in (2**power for power in range(MOST_ROWS.bit_length()))
        if count >= least
    )
    return all(torch.equal(reference, other) for other in others)


def _packed(layers: Sequence[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The layers' weights in one, rearranged, and their biases."""
    with torch.inference_mode():
        weight, bias = _joined(layers)
        # The kernel for one row is the one that counts; its layout serves more rows as well.
        return torch.ops.mkldnn._reorder_linear_weight(weight, 1), bias


def _joined(layers: Sequence[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The layers' weights and biases, each in one."""
    weights = [layer.weight.detach() for layer in layers]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    bias = torch.cat(biases) if biases else None
    if bias is not None and len(bias) != len(weight):
        raise ValueError("Expected a bias in all layers or in none.")
    return weight, bias


@functools.cache
@torch.inference_mode()
def _least(features: int, outs: int, threads: int) -> int:
    """`Projection.least` of a shape; which kernel runs depends on the number of threads too."""
    weight, bias = _packed([nn.Linear(features, outs, bias=False, dtype=torch.bfloat16)])

    def call(x: torch.Tensor) -> torch.Tensor:
        return project(x, [weight], [bias], 1, True)

    return next((least for least in (1, 2) if row_invariant(call, features, outs, least)), 1)

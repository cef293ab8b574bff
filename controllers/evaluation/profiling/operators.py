"""Which operators a piece of work ran, in a few groups that can be set against each other.

Operators are known by their names alone, so that it does not matter which code called them. A name says what was done
and not what for: a copy into the cache and one that changes a precision are both `copy_`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from specgym.env.models.fast.native import watched

OVERHEAD = "overhead"
OTHER = "other"

_NAMES = {
    "linears": """
        linear mm addmm matmul mv addmv addbmm _addmm_activation _scaled_mm mkldnn_linear
        mkldnn::_linear_pointwise mkldnn::_mkl_linear mkl::_mkl_linear mkldnn::_reorder_linear_weight
        quantized::linear_dynamic _weight_int8pack_mm _weight_int4pack_mm native::linear
    """,
    "attention": """
        scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
        _scaled_dot_product_cudnn_attention _scaled_dot_product_fused_attention_overrideable
        _fused_sdp_choice _flash_attention_forward _efficient_attention_forward _cudnn_attention_forward
        bmm baddbmm einsum softmax _softmax _safe_softmax native::attention
    """,
    "element-wise": """
        rms_norm _fused_rms_norm layer_norm native_layer_norm group_norm rsqrt sqrt pow mean sum square
        mul add sub rsub div neg reciprocal abs addcmul addcdiv clamp clamp_min clamp_max minimum maximum
        cos sin exp sigmoid tanh erf silu gelu relu softplus softcap floor_divide remainder
        where masked_fill lt le gt ge eq ne logical_and logical_or logical_not bitwise_and bitwise_or bitwise_not
        tril triu cumsum any all native::rest
    """,
    "moves": """
        copy to _to_copy type_as contiguous clone cat stack repeat repeat_interleave index index_select index_copy
        index_put _index_put_impl index_add gather take scatter slice_scatter select_scatter embedding
        fill zero zeros zeros_like new_zeros ones ones_like new_ones full full_like new_full arange scalar_tensor
        pad constant_pad_nd roll flip masked_scatter nonzero
    """,
    "logits": """
        log_softmax _log_softmax topk sort argmax argmin max amax min amin multinomial exponential log special_entr
        isnan isinf isfinite logsumexp item _local_scalar_dense is_nonzero equal unique
        random uniform normal randn rand bernoulli
    """,
    OVERHEAD: """
        view _unsafe_view reshape _reshape_alias transpose t permute expand expand_as slice select narrow chunk split
        split_with_sizes unbind unflatten flatten unsqueeze squeeze unfold as_strided alias detach detach_copy swapaxes
        movedim diagonal view_as numpy_T empty empty_like empty_strided new_empty new_empty_strided resize set
        decoder_layer _states _attended _after_attention project _project_more filled_up
        resolve_conj resolve_neg lift_fresh lift result_type promote_types can_cast is_pinned pin_memory
        broadcast_tensors meshgrid record_stream
    """,
}
_GROUP_OF = {name: group for group, names in _NAMES.items() for name in names.split()}

GROUPS = (*_NAMES, OTHER)
"""What operators are told apart by, in the order of tables and figures: `overhead` is views, allocations and the time
outside of operators; `moves` the cache's writes and every other copy; `other` what no group knows."""

_MARK = "specgym::round"
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Operator:
    """One call of an operator."""

    name: str
    began: float
    """by the clock of `time.perf_counter` [s]"""
    seconds: float
    """without the operators that it called; on a GPU, of its kernels [s]"""


def group_of(name: str) -> str:
    """The group of an operator by its name, in place or not; `other` for an unknown one."""
    if name.startswith(("cuda", "cu")) and "::" not in name:  # calls of the driver: launches, waits
        return OVERHEAD
    plain = name.removeprefix("aten::")
    return _GROUP_OF.get(plain) or _GROUP_OF.get(plain.removesuffix("_"), OTHER)


def record_operators(call: Callable[[], _Result], device: torch.device) -> tuple[_Result, list[Operator]]:
    """Runs `call` under torch's profiler, which makes it slower; its result and the operators that it called.

    Args:
        call: what to run.
        device: where its operators run.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes to stderr otherwise
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]
    with profile(activities=activities) as profiler:
        for _ in range(2):  # the first mark takes longer than later ones
            before = time.perf_counter()
            with record_function(_MARK):
                marked = (before + time.perf_counter()) / 2
        with watched() as stretches:
            result = call()
        if cuda:
            torch.cuda.synchronize(device)
    events: list[Any] = [event for event in profiler.events() or () if event.device_type.name == "CPU"]
    mark = max(event.time_range.start for event in events if event.name == _MARK)
    compiled = [Operator(*stretch) for stretch in stretches]
    return result, compiled + [
        Operator(
            event.name,
            marked + 1e-6 * (event.time_range.start - mark),
            1e-6 * (event.self_device_time_total if cuda else event.self_cpu_time_total),
        )
        for event in events
        if event.time_range.start > mark and not event.name.startswith("[")
    ]


def seconds_by_group(
    operators: Iterable[Operator], begin: float, end: float
) -> tuple[dict[str, float], dict[str, float]]:
    """How long the operators of a stretch of time took, by group; together as long as the stretch.

    Args:
        operators: of a recording.
        begin: of the stretch, by the same clock [s].
        end: of the stretch [s].

    Returns:
        Seconds by group, those outside of operators as `overhead`; and seconds of `other` by name.
    """
    found, unknown = dict.fromkeys(GROUPS, 0.0), dict[str, float]()
    for operator in operators:
        if begin <= operator.began < end:
            group = group_of(operator.name)
            found[group] += operator.seconds
            if group == OTHER:
                unknown[operator.name] = unknown.get(operator.name, 0.0) + operator.seconds
    busy, span = sum(found.values()), end - begin
    if busy > span:  # work of a GPU that goes on past the stretch
        scale = span / busy
        return {name: scale * value for name, value in found.items()}, unknown
    found[OVERHEAD] += span - busy
    return found, unknown

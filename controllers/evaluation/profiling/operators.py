"""Records the operators of a piece of work, and sorts them into a few groups.

Operators are sorted by name alone, whichever code calls them. A name does not show the purpose: a copy into the cache
and one that changes a precision are both `copy_`.
"""

from __future__ import annotations

import inspect
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from specgym.env.models.fast import layer
from specgym.env.models.fast.native_matrix import record_native_time

OVERHEAD = "overhead"
OTHER = "other"

_NAMES = {
    "linears": "mm addmm matmul mv addmv addbmm addmm_activation scaled_mm weight_int8pack_mm weight_int4pack_mm",
    "attention": "sdp_choice bmm baddbmm einsum softmax safe_softmax",
    "element-wise": """
        rms_norm layer_norm group_norm rsqrt sqrt pow mean sum square mul add sub rsub div neg reciprocal abs addcmul
        addcdiv clamp clamp_min clamp_max minimum maximum cos sin exp sigmoid tanh erf silu gelu relu softplus softcap
        floor_divide remainder where masked_fill lt le gt ge eq ne logical_and logical_or logical_not bitwise_and
        bitwise_or bitwise_not tril triu cumsum any all native::rest
    """,
    "moves": """
        copy to type_as contiguous clone cat stack repeat repeat_interleave index index_select index_put index_add
        gather take scatter slice_scatter select_scatter embedding fill zero zeros ones full arange scalar_tensor pad
        constant_pad_nd roll flip masked_scatter nonzero
    """,
    "logits": """
        log_softmax topk sort argmax argmin max amax min amin multinomial exponential log special_entr isnan isinf
        isfinite logsumexp item local_scalar_dense is_nonzero equal unique random uniform normal randn rand bernoulli
    """,
    OVERHEAD: """
        view unsafe_view reshape reshape_alias transpose t permute expand expand_as slice select narrow chunk split
        split_with_sizes unbind unflatten flatten unsqueeze squeeze unfold as_strided alias detach swapaxes movedim
        diagonal view_as numpy_T empty empty_strided resize set resolve_conj resolve_neg lift_fresh lift result_type
        promote_types can_cast is_pinned pin_memory broadcast_tensors meshgrid record_stream
    """,
}
_VARIANT = re.compile(r"^(aten::)?_?(fused_|native_|new_)?|(_impl|_like|_copy)?_?$")  # parts of a name without meaning
_GROUP_OF = {name: group for group, names in _NAMES.items() for name in names.split()}
_GROUP_OF |= {name: OVERHEAD for name, value in vars(layer).items() if inspect.isfunction(value)}  # may be scripted
_GROUP_OF_WORD = {"linear": "linears", "attention": "attention"}  # in the names of all others

GROUPS = (*_NAMES, OTHER)
"""Groups of operators, in the order of tables and figures: `overhead` is views, allocations and the time outside of
operators; `moves` the cache's writes and every other copy; `other` every unknown operator."""

_MARK = "specgym::round"
_MARKS = 5  # the shortest counts: the first is slow, and a busy machine may interrupt any of them
_Result = TypeVar("_Result")
_Seconds: TypeAlias = dict[str, float]  # by name


@dataclass(frozen=True, slots=True)
class Operator:
    """One call of an operator."""

    name: str
    began: float
    """start by the clock of `time.perf_counter` [s]"""
    seconds: float
    """time without the operators that it called; on a GPU, time of its kernels [s]"""


def group_of(name: str) -> str:
    """Returns the group of an operator by its name, in place or not; `other` for an unknown one."""
    if name.startswith("cu") and "::" not in name:  # calls of the CUDA driver: launches, waits
        return OVERHEAD
    by_word = (group for word, group in _GROUP_OF_WORD.items() if word in name)
    return _GROUP_OF.get(name) or _GROUP_OF.get(_VARIANT.sub("", name)) or next(by_word, OTHER)


def record_operators(call: Callable[[], _Result], device: torch.device) -> tuple[_Result, list[Operator]]:
    """Runs `call` under torch's profiler, which slows it down; returns its result and the operators that it called.

    Args:
        call: the work to record.
        device: the device of its operators.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes to stderr
    cuda = device.type == "cuda"
    marks: list[tuple[float, float]] = []  # duration and middle of an interval in which a mark began [s]
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]) as profiler:
        for _ in range(_MARKS):
            before = time.perf_counter()
            with record_function(_MARK):
                after = time.perf_counter()
            marks.append((after - before, (before + after) / 2))
        with record_native_time() as stretches:
            result = call()
        torch.get_device_module(device).synchronize(device)  # does nothing on a CPU
    events: list[Any] = [event for event in profiler.events() or () if event.device_type.name == "CPU"]
    starts = sorted(event.time_range.start for event in events if event.name == _MARK)
    (_, marked), mark = min(zip(marks, starts, strict=True))
    return result, [Operator(*stretch) for stretch in stretches] + [
        Operator(
            event.name,
            marked + 1e-6 * (event.time_range.start - mark),
            1e-6 * (event.self_device_time_total if cuda else event.self_cpu_time_total),
        )
        for event in events
        if event.time_range.start > starts[-1] and not event.name.startswith("[")
    ]


def seconds_by_group(operators: Iterable[Operator], begin: float, end: float) -> tuple[_Seconds, _Seconds]:
    """Returns the time of the operators of an interval by group; the times add up to the interval.

    Args:
        operators: a recording.
        begin: start of the interval, by the same clock [s].
        end: end of the interval [s].

    Returns:
        Seconds by group, with the time outside of operators as `overhead`; and seconds of `other` by name.
    """
    groups, unknown = dict.fromkeys(GROUPS, 0.0), dict[str, float]()
    for operator in operators:
        if begin <= operator.began < end:
            group = group_of(operator.name)
            groups[group] += operator.seconds
            if group == OTHER:
                unknown[operator.name] = unknown.get(operator.name, 0.0) + operator.seconds
    busy, span = sum(groups.values()), end - begin
    if busy > span:  # a GPU works on past the interval
        return {name: value * span / busy for name, value in groups.items()}, unknown
    groups[OVERHEAD] += span - busy
    return groups, unknown

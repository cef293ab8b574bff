"""Finds texts of traces and latency profiles by name or file."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from specgym.env.common.errors import TraceError, UnknownNameError
from specgym.env.latency.families import FAMILIES
from specgym.env.latency.latency_profile import LatencyProfile, load_profile
from specgym.env.replay.traces.file import Trace, read_trace
from specgym.env.replay.traces.packing import PACKED, unpack_trace
from specgym.env.replay.traces.records import SPLITS, TraceText
from specgym.env.tree.rounds import Request

_HERE = Path(__file__).parent
_PROFILES = _HERE.parent / "latency" / "shipped"
DEFAULT_TRACE = _HERE / "traces" / "shipped" / "smollm2-135m-instruct.sgt.xz"
"""the trace that is replayed if none is named, one of the default pair"""
DEFAULT_PROFILE = "overhead_bound"
"""the machine that is replayed on if none is named"""
_MEASURED = {"avx512_bf16": "epyc_bf16", "avx2": "epyc_avx2_bf16"}  # measured profile by CPU flag, the fastest first

TraceSource: TypeAlias = "str | PathLike[str] | Sequence[str | PathLike[str]] | Trace"
"""a trace's file, files of traces of one pair by one rule, or a trace that was read"""
ProfileSource: TypeAlias = "str | PathLike[str] | LatencyProfile"
"""a family's name, the file of a latency profile, or the profile itself"""


def find_trace(traces: TraceSource | None = None) -> Trace:
    """Returns a trace, or several joined.

    Args:
        traces: which; the shipped one if None.

    Raises:
        TraceError: a file cannot be read, files are of different pairs or rules, or none is named.
    """
    if isinstance(traces, Trace):
        return traces
    if traces is None and DEFAULT_TRACE.exists():
        traces = DEFAULT_TRACE
    paths = [Path(path) for path in ([traces] if isinstance(traces, str | PathLike) else traces or ())]
    if not paths:
        raise TraceError(
            "Expected a trace to replay, traces=PATH; got none, and none is shipped with this installation. Record one "
            "with specgym record."
        )
    first, *others = (read_trace(unpack_trace(path) if path.suffix == PACKED else path) for path in paths)
    for other in others:
        if other.header != first.header:
            raise TraceError(
                f"{other.path} and {first.path} are traces of different pairs or rules: replay them apart."
            )
    return Trace(first.path, first.header, [text for trace in (first, *others) for text in trace.texts])


def find_profile(profile: ProfileSource | None = None) -> LatencyProfile:
    """Returns the profile of that name or file; that of `DEFAULT_PROFILE` if None.

    Raises:
        ProfileError: a file that is missing, corrupt or of another schema.
        UnknownNameError: a name that is neither a family's nor looks like a file.
    """
    profile = DEFAULT_PROFILE if profile is None else profile
    if isinstance(profile, LatencyProfile):
        return profile
    name, shipped = str(profile), shipped_profiles()
    if name in FAMILIES:
        return FAMILIES[name]()
    path = shipped.get(name, Path(name))
    if path.suffix or path.exists() or len(path.parts) > 1:
        return load_profile(path)
    raise UnknownNameError("latency profile", name, [*FAMILIES, *shipped])


def shipped_profiles() -> dict[str, Path]:
    """Returns the files of shipped profiles, which are of measured machines, by name."""
    return {path.stem: path for path in sorted(_PROFILES.glob("*.json"))}


def profile_names() -> list[str]:
    """Returns the names of the parametric families, then of the measured machines."""
    return [*FAMILIES, *shipped_profiles()]


def nearest_profile(dtype: str) -> str:
    """Returns the name of the profile that is nearest to this machine.

    This is a measured profile if its CPU has the same vector instructions, else the family of compute-bound machines.

    Args:
        dtype: precision of the models, see `TraceHeader.dtype`.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        flags = []  # no Linux
    names = (name for flag, name in _MEASURED.items() if dtype == "bfloat16" and flag in flags)
    return next(names, "compute_bound")


def choose_texts(
    texts: Sequence[TraceText], split: str | None = None, temperature: float | None = None
) -> list[TraceText]:
    """Returns the texts of a split and a temperature that have a round to steer.

    Args:
        texts: all texts.
        split: one of `SPLITS`; None for all.
        temperature: None for all.

    Raises:
        UnknownNameError: no such split.
        TraceError: no such text.
    """
    if split is not None and split not in SPLITS:
        raise UnknownNameError("split", str(split), SPLITS)
    chosen = [
        text
        for text in playable(texts)
        if split in (None, text.split) and temperature in (None, text.settings.temperature)
    ]
    if not chosen:
        wanted = f"split={split}, temperature={temperature}"
        there = sorted({(text.split, text.settings.temperature) for text in playable(texts)})
        available = ", ".join(f"{name} at {heat:g}" for name, heat in there) or "none"
        raise TraceError(
            f"Expected recorded texts of {wanted} with a round to steer; the trace has {available}. "
            "Choose from those (None for all), or record more with specgym record."
        )
    return chosen


def profile_label(name: str) -> str:
    """Returns what results call the profile of that name or file: the name, or the file's name without its folder."""
    return name if name in profile_names() else Path(name).stem


def playable(texts: Sequence[TraceText]) -> list[TraceText]:
    """Returns the texts with a round to steer, which do not end with their first token."""
    return [text for text in texts if len(text.tokens) > text.prompt + 1]


def text_request(text: TraceText) -> Request:
    """Returns the request that a recorded text answers."""
    return Request(text.tokens[: text.prompt], text.max_new_tokens, text.settings)

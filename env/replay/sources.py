"""What replay is made of, by the names that people give it: texts of some traces, and the profile of a machine."""

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

TraceSource: TypeAlias = "str | PathLike[str] | Sequence[str | PathLike[str]] | Trace"
"""a trace's file, files of traces of one pair by one rule, or a trace that was read"""
ProfileSource: TypeAlias = "str | PathLike[str] | LatencyProfile"
"""a family's name, the file of a latency profile, or the profile itself"""


def find_trace(traces: TraceSource | None = None) -> Trace:
    """The trace, or several as one.

    Args:
        traces: which; the shipped one if None.

    Raises:
        TraceError: a file cannot be read, they are of different pairs or rules, or there are none.
    """
    if isinstance(traces, Trace):
        return traces
    if traces is None and DEFAULT_TRACE.exists():
        traces = DEFAULT_TRACE
    paths = [traces] if isinstance(traces, str | PathLike) else list(traces or ())
    if not paths:
        raise TraceError(
            "Expected a trace to replay, traces=PATH; got none, and none is shipped with this installation. Record one "
            "with python -m scripts.record."
        )
    first, *others = (_read(Path(path)) for path in paths)
    for other in others:
        if other.header != first.header:
            raise TraceError(
                f"{other.path} and {first.path} are traces of different pairs or rules: replay them apart."
            )
    return Trace(first.path, first.header, [text for trace in (first, *others) for text in trace.texts])


def find_profile(profile: ProfileSource | None = None) -> LatencyProfile:
    """The profile of that name or file; of `DEFAULT_PROFILE` if None.

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
    """The profiles of measured machines that come along, by name."""
    return {path.stem: path for path in sorted(_PROFILES.glob("*.json"))}


def profile_names() -> list[str]:
    """The profiles that have a name: the parametric families, then the measured machines."""
    return [*FAMILIES, *shipped_profiles()]


def choose_texts(
    texts: Sequence[TraceText], split: str | None = None, temperature: float | None = None
) -> list[TraceText]:
    """The texts of a split and a temperature that have a round to steer.

    Args:
        texts: all texts.
        split: one of `SPLITS`; None for all.
        temperature: None for all.

    Raises:
        UnknownNameError: there is no such split.
        TraceError: there is no such text.
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
        found = ", ".join(f"{each} at {heat:g}" for each, heat in there) or "none"
        raise TraceError(
            f"Expected recorded texts of {wanted} with a round to steer; the trace has {found}. "
            "Ask for those (None for all), or record more with scripts.record."
        )
    return chosen


def _read(path: Path) -> Trace:
    return read_trace(unpack_trace(path) if path.suffix == PACKED else path)


def profile_label(name: str) -> str:
    """What results call the profile of that name or file: the name, or the file's without its folder."""
    return name if name in profile_names() else Path(name).stem


def playable(texts: Sequence[TraceText]) -> list[TraceText]:
    """Texts with a round to steer: those that do not end with their first token."""
    return [text for text in texts if len(text.tokens) > text.prompt + 1]


def text_request(text: TraceText) -> Request:
    """The request that a recorded text answers."""
    return Request(text.tokens[: text.prompt], text.max_new_tokens, text.settings)

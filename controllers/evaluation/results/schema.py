"""The results of a run as typed records, and typed records as JSON: what `results.json` holds, key by key.

JSON is the truth; tables, CSV files and figures are derived from it. Reading is strict, so that nobody compares numbers
that mean different things: unknown or missing keys, wrong types and other schema versions are refused.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

from specgym.env.common.errors import ParameterError

JSON: TypeAlias = Any
T = TypeVar("T")

SCHEMA_VERSION = 1
CLAIRVOYANT, MYOPIC = "clairvoyant", "myopic"
"""names of the bounds: the best choices for a whole text, and the best choice of every round"""
KINDS = ("benchmark", "evaluation", "compare")
SHARES = ("draft", "verify", "commit", "controller", "other")
"""keys of `ControllerSummary.shares`: the stages of a round, and the rest"""
STAGE_KEYS = ("draft", "draft_forward", "verify", "verify_forward", "commit", "controller")
"""keys of `PromptRow.seconds_by_part`; a `_forward` key is the model's part of its stage"""


@dataclass(frozen=True)
class PromptRow:
    """One run of a controller on a prompt. Raises `ParameterError` for impossible measurements."""

    controller: str
    prompt_id: str
    category: str
    repeat: int  # which repetition, from 0
    prompt_tokens: int  # length of the prompt [tokens]
    tokens: int  # generated, end-of-sequence included [tokens]
    seconds: float  # wall time of the generation, controller included [s]
    rounds: int  # target forwards
    drafted: int  # draft tokens in trees [tokens]
    accepted: int  # accepted draft tokens [tokens]
    seconds_by_part: dict[str, float] = field(default_factory=dict)  # wall time by `STAGE_KEYS` [s]; empty if not timed
    identical: bool | None = None  # the output equals plain decoding's; None: not compared
    first_difference: int | None = None  # index of the first differing token
    top2_gap: float | None = None  # the target's top-2 logit gap there

    def __post_init__(self) -> None:
        # Refused at the first bad row, not in the summary after hours of measuring.
        if not (self.tokens >= 1 and math.isfinite(self.seconds) and self.seconds > 0):
            self._refuse("tokens >= 1 and seconds > 0", f"{self.tokens} tokens in {self.seconds} s")
        if unknown := sorted(set(self.seconds_by_part) - set(STAGE_KEYS)):
            self._refuse(f"parts among {', '.join(STAGE_KEYS)}", f"{', '.join(unknown)}")
        if not all(math.isfinite(value) and value >= 0 for value in self.seconds_by_part.values()):
            self._refuse("parts of 0 s or more", f"{self.seconds_by_part}")

    def _refuse(self, expected: str, came: str) -> NoReturn:
        raise ParameterError(
            f"A row of {self.controller!r} on prompt {self.prompt_id!r}: expected {expected}, came {came}. "
            "Record a run that produced nothing as a failure."
        )


@dataclass(frozen=True)
class Failure:
    """A run that raised instead of producing a row."""

    controller: str
    prompt_id: str
    repeat: int
    error: str


@dataclass(frozen=True)
class CategorySummary:
    """One controller on the prompts of one category."""

    tokens_per_second: float
    speedup: float | None
    speedup_ci95: tuple[float, float] | None
    prompts: int


@dataclass(frozen=True)
class ControllerSummary:
    """One controller on all its prompts; None where there was nothing to measure."""

    tokens_per_second: float | None  # total tokens / total seconds
    speedup: float | None  # throughput over the baseline's, on the prompts that both have
    speedup_ci95: tuple[float, float] | None  # 95 % bootstrap interval over prompts
    mean_accepted_tokens: float | None  # tokens per target forward, bonus included
    acceptance_rate: float | None  # accepted / drafted; None if nothing was drafted
    mean_tree_size: float | None  # draft tokens per round
    identical_outputs: int | None  # prompts whose every compared output was plain decoding's; None: none compared
    compared_outputs: int  # prompts with an output to compare
    prompts: int  # prompts measured without a failure
    failures: int  # prompts with at least one failure, left out of every other number
    controller_share: float | None  # the controller's fraction of the wall time
    shares: dict[str, float]  # fractions of the wall time by `SHARES`, summing to 1; empty without prompts
    engine_share: float | None  # 1 - (forwards + controller) / seconds; None if forwards were not timed
    by_category: dict[str, CategorySummary]


@dataclass(frozen=True)
class Machine:
    """The machine that numbers were measured on."""

    cpu: str  # model name
    cores: int  # logical processors that this process may use
    threads: int  # threads that torch uses for one operation
    memory_gib: float  # [GiB]
    device: str  # where the models ran: "cpu" or the accelerator's name
    platform: str  # operating system and architecture


@dataclass(frozen=True)
class PeerFacts:
    """Facts about another library's decoding; a comparison keeps them by name in ``settings["peers"]``."""

    package: str  # what pip calls the library
    version: str | None  # None: the library is not installed
    given: str  # its input and settings
    reference: str  # the peer's own plain decoding, which its outputs are compared with
    reason: str | None  # why it did not run; None: it ran


@dataclass(frozen=True, kw_only=True)
class Results:
    """All results of one run."""

    schema_version: int = SCHEMA_VERSION
    kind: str  # one of KINDS
    complete: bool  # False: the run was stopped before its last row
    suite: str
    started_at: str  # UTC, ISO 8601
    command: str
    git_revision: str | None  # with "-dirty" if tracked files were modified
    versions: dict[str, str]
    machine: Machine
    settings: dict[str, JSON]
    baseline: str  # the controller that speed-ups are measured against
    controllers: dict[str, ControllerSummary]
    rows: list[PromptRow]
    failures: list[Failure]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ParameterError(f"kind: expected one of {', '.join(KINDS)}, came {self.kind!r}.")

    @property
    def peers(self) -> dict[str, PeerFacts]:
        """Facts about the other libraries of a comparison, by their name."""
        return decode(dict[str, PeerFacts], self.settings.get("peers", {}), "results.settings.peers")

    @property
    def is_ladder(self) -> bool:
        """Whether the clairvoyant bound was computed: then times are predicted, and no output can differ."""
        return self.kind == "evaluation" and CLAIRVOYANT in self.controllers


def to_json(record: Any) -> str:
    """Returns a dataclass as JSON text; numbers that JSON cannot hold (NaN, infinity) become null."""
    return json.dumps(_plain(dataclasses.asdict(record)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(kind: type[T], text: str) -> T:
    """Reads what `to_json` wrote. Raises `ParameterError` as `decode` does, and for text that is not JSON."""
    where = kind.__name__.lower()
    try:
        value = json.loads(text, parse_constant=lambda name: _refuse(where, "numbers or null", name))
    except json.JSONDecodeError as error:
        raise ParameterError(
            f"Expected JSON, came text that breaks off or goes wrong at line {error.lineno}, "
            f"column {error.colno} ({error.msg}). Run the command again to write it anew."
        ) from error
    return decode(kind, value, where)


def read_record(kind: type[T], path: Path) -> T:
    """Reads a file of what `to_json` wrote. Raises `ParameterError` that names the file."""
    try:
        return from_json(kind, path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParameterError(
            f"Could not read {path}: {error.strerror or error}. Give the JSON file that a run has written."
        ) from error
    except UnicodeDecodeError as error:
        raise ParameterError(f"{path}: expected UTF-8 text, came other bytes. Give a JSON file.") from error
    except ParameterError as error:
        raise ParameterError(f"{path}: {error}") from error


def decode(kind: type[T], value: JSON, where: str) -> T:
    """Builds an object of type `kind` from parsed JSON.

    Args:
        kind: a dataclass; ``int``, ``float``, ``str`` or ``bool``; a list, tuple or dictionary of these; one of these
            ``| None``; ``Any``.
        value: the JSON. An object must have all keys of its dataclass and no other. A dataclass whose field
            ``schema_version`` has a default refuses other versions.
        where: the value's name in messages.

    Raises:
        ParameterError: `value` does not fit; the message names the place, what was expected and what came.
    """
    decoded: T = _decode(kind, value, where)
    return decoded


def _plain(value: JSON) -> JSON:
    """Returns `value` with NaN and infinities as None and array scalars as Python numbers."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(_plain, value))
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _decode(hint: Any, value: JSON, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _decode_record(hint, value, where)
    if origin is UnionType:
        return None if value is None else _decode(inner[0], value, where)
    if origin is dict:
        _expect(isinstance(value, dict), where, "an object", value)
        return {key: _decode(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin in (list, tuple):
        fixed = origin is tuple and inner[-1] is not Ellipsis
        fits = isinstance(value, list) and (not fixed or len(value) == len(inner))
        _expect(fits, where, f"a list of {len(inner)}" if fixed else "a list", value)
        hints = inner if fixed else inner[:1] * len(value)
        return origin(_decode(hint, value[index], f"{where}[{index}]") for index, hint in enumerate(hints))
    accepted = isinstance(value, (int, float) if hint is float else hint)
    _expect(accepted and isinstance(value, bool) == (hint is bool), where, f"a value of type {hint.__name__}", value)
    return hint(value)


def _decode_record(record: Any, value: JSON, where: str) -> Any:
    _expect(isinstance(value, dict), where, "an object", value)
    hints, version = _hints(record), getattr(record, "schema_version", None)
    if version is not None and value.get("schema_version", version) != version:
        _refuse(f"{where}.schema_version", str(version), repr(value["schema_version"]))
    if unknown := sorted(set(value) - set(hints)):
        _refuse(where, f"only the keys {', '.join(hints)}", f"unknown keys {', '.join(unknown)}")
    if missing := [key for key in hints if key not in value]:
        _refuse(where, f"the keys {', '.join(hints)}", f"an object with missing keys {', '.join(missing)}")
    return record(**{key: _decode(hint, value[key], f"{where}.{key}") for key, hint in hints.items()})


_hints = functools.cache(get_type_hints)  # slow, and needed for every row


def _expect(fits: bool, where: str, expected: str, value: JSON) -> None:
    if not fits:
        _refuse(where, expected, repr(value))


def _refuse(where: str, expected: str, came: str) -> NoReturn:
    came = came if len(came) <= 200 else f"{came[:200]}..."
    raise ParameterError(
        f"{where}: expected {expected}, came {came}. The file may be of another SpecGym: "
        "read it with the one that wrote it, or run the command again."
    )

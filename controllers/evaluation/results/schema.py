"""The results of a run, typed: what `results.json` holds, key by key.

JSON is the truth; the table, the CSV file and the figures are derived from it. Reading is strict: a key too many, a key
too few, a wrong type or another schema version is refused, so that nobody compares numbers that mean different things.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from types import UnionType
from typing import Any, NoReturn, TypeAlias, get_args, get_origin, get_type_hints

from specgym.env.common.errors import ParameterError

JSON: TypeAlias = Any

SCHEMA_VERSION = 1
KINDS = ("benchmark", "evaluation", "compare")
PARTS = ("draft", "verify", "commit", "controller", "engine")
"""Parts of a run's wall time; `engine` is everything outside model forwards and the controller."""
SHARES = ("draft", "verify", "commit", "controller", "other")
"""Keys of `ControllerSummary.shares`: the stages of a round, and what no stage covers."""
STAGE_KEYS = ("draft", "draft_forward", "verify", "verify_forward", "commit", "controller")
"""Keys of `PromptRow.seconds_by_part`; a `_forward` key is the model's part of the stage and lies inside it."""


@dataclass(frozen=True)
class PromptRow:
    """One controller's run over one prompt, once. Raises `ParameterError` for a measurement that cannot be."""

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
    seconds_by_part: dict[str, float]  # wall time by `STAGE_KEYS` [s]; empty if the runner cannot tell
    identical: bool | None  # the output equals plain decoding's; None: nothing to compare with
    first_difference: int | None  # index of the first differing token
    top2_gap: float | None  # the target's top-2 logit gap there

    def __post_init__(self) -> None:
        # Refused here, at the first bad row, and not in the summary after hours of measuring.
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
    """One controller on all its prompts; None stands where there was nothing to measure."""

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
    """What the numbers were measured on."""

    cpu: str  # model name
    cores: int  # logical processors that this process may use
    threads: int  # threads that torch uses for one operation
    memory_gib: float  # [GiB]
    device: str  # where the models ran: "cpu" or the accelerator's name
    platform: str  # operating system and architecture


@dataclass(frozen=True)
class PeerFacts:
    """Another library's way of decoding, as ``settings["peers"]`` of a comparison has it, by its name."""

    package: str  # what pip calls the library
    version: str | None  # None: the library is not there
    given: str  # what it is given, and how it is set
    reference: str  # the peer that is its plain decoding, which its outputs are compared with
    reason: str | None  # why it did not run; None: it did


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that one run has to say."""

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

    def to_json(self) -> str:
        """The results as JSON text; numbers that JSON cannot say (NaN, infinity) become null."""
        return json.dumps(_plain(dataclasses.asdict(self)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Reads what `to_json` wrote.

        Raises:
            ParameterError: not JSON, another schema version, or keys or types that do not fit; the message names the
                place, what was expected and what came.
        """
        try:
            data = json.loads(text, parse_constant=lambda name: _refuse("results", "numbers or null", name))
        except json.JSONDecodeError as error:
            raise ParameterError(
                f"Expected JSON, came text that breaks off or goes wrong at line {error.lineno}, "
                f"column {error.colno} ({error.msg}). Run the command again to write it anew."
            ) from error
        if isinstance(data, dict) and (version := data.get("schema_version", SCHEMA_VERSION)) != SCHEMA_VERSION:
            _refuse("results.schema_version", str(SCHEMA_VERSION), repr(version))
        results: Results = _decode(cls, data, "results")
        return results


def _plain(value: JSON) -> JSON:
    """`value` with NaN and infinities as None and array scalars as Python numbers."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _decode(hint: Any, value: JSON, where: str) -> Any:
    """Builds what the type `hint` names from parsed JSON; refuses what does not fit."""
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _decode_record(hint, value, where)
    if get_origin(hint) is UnionType:
        return None if value is None else _decode(get_args(hint)[0], value, where)
    if get_origin(hint) is not None:
        return _decode_container(hint, value, where)
    accepted = (int, float) if hint is float else (hint,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        _refuse(where, f"a value of type {hint.__name__}", repr(value))
    return hint(value)


def _decode_record(record: Any, value: JSON, where: str) -> Any:
    if not isinstance(value, dict):
        _refuse(where, "an object", repr(value))
    hints = get_type_hints(record)
    if unknown := sorted(set(value) - set(hints)):
        _refuse(where, f"only the keys {', '.join(hints)}", f"unknown keys {', '.join(unknown)}")
    if missing := [key for key in hints if key not in value]:
        _refuse(where, f"the keys {', '.join(hints)}", f"an object with missing keys {', '.join(missing)}")
    return record(**{key: _decode(hint, value[key], f"{where}.{key}") for key, hint in hints.items()})


def _decode_container(hint: Any, value: JSON, where: str) -> Any:
    kind, inner = get_origin(hint), get_args(hint)
    if kind is dict:
        if not isinstance(value, dict):
            _refuse(where, "an object", repr(value))
        return {key: _decode(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    length = len(inner) if kind is tuple else None
    if not isinstance(value, list) or (length is not None and len(value) != length):
        _refuse(where, "a list" if length is None else f"a list of {length}", repr(value))
    return kind(_decode(inner[0], item, f"{where}[{index}]") for index, item in enumerate(value))


def _refuse(where: str, expected: str, came: str) -> NoReturn:
    came = came if len(came) <= 200 else f"{came[:200]}..."
    raise ParameterError(
        f"{where}: expected {expected}, came {came}. These results may be of another SpecGym: "
        "read them with the one that wrote them, or run the command again."
    )

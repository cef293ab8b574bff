"""The latency profile of one machine and pair: its costs, their origin, and its file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from specgym.env.common.errors import SpecGymError
from specgym.env.common.files import write_text
from specgym.env.common.reading import WRONG_VALUES, check_types, read_json
from specgym.env.latency.costs import CURVES, Curve, RoundCosts

FORMAT = "specgym latency profile 1"
"""schema and version of the file"""
_TYPES = {"bool": bool, "str": str, "int": int, "float": float}  # by their names in annotations
_REPAIR = "Give the path of a profile that `specgym measure-latency` wrote, or run it again."


class ProfileError(SpecGymError, ValueError):
    """A latency profile is missing, corrupt or of another schema; the message names the file."""


@dataclass(frozen=True)
class Point:
    """The measurements of one cell, kept beside the curve that was fitted to them."""

    greedy: bool
    """whether tokens were chosen greedily"""
    stage: str
    """``plain``, ``root``, ``level``, ``verify``, ``overhead``, ``lookup`` or ``prompt`` (the draft reads a prompt)"""
    context: int
    """median position of the roots in the cell's rounds [tokens]"""
    rows: int
    """rows of the forward; 1 in stages without rows"""
    seconds: float
    """median time [s]"""
    count: int
    """number of measurements"""


@dataclass(frozen=True)
class Check:
    """Predicted against measured time of one controller's real texts."""

    controller: str
    """name of the controller"""
    greedy: bool
    """whether tokens were chosen greedily"""
    texts: int
    """texts generated"""
    rounds: int
    """rounds of the controller, in all texts together"""
    measured: float
    """time of these rounds [s]"""
    predicted: float
    """time that the profile predicts for these rounds [s]"""
    error: float
    """median over the texts of ``|predicted - measured| / measured``"""
    measured_steps: float = 0.0
    """time of a token, median over the texts. The plain step is measured in the same text, before and after the rounds.
    0 in profiles written before it was measured [plain steps]"""
    predicted_steps: float = 0.0
    """time of a token that the profile predicts, median over the texts [plain steps]"""
    steps_error: float = 0.0
    """median over the texts of ``|predicted_steps - measured_steps| / measured_steps``"""


@dataclass(frozen=True)
class LatencyProfile:
    """Costs of rounds of one machine and pair, greedy and sampled."""

    greedy: RoundCosts
    """costs at temperature 0"""
    sampled: RoundCosts
    """costs above temperature 0, where every row of the target and the draft needs noise over the vocabulary"""
    origin: dict[str, Any] = field(default_factory=dict)
    """machine, pair, versions, revision, date and settings; or a family and its parameters"""
    points: tuple[Point, ...] = ()
    """the measurements; none for a family"""
    checks: tuple[Check, ...] = ()
    """predicted and measured times of real texts, from the run that measured the profile"""

    def costs(self, greedy: bool) -> RoundCosts:
        """The costs of one mode."""
        return self.greedy if greedy else self.sampled

    def save(self, path: Path) -> None:
        """Writes the profile as JSON. Raises `FileWriteError`."""
        record = {"format": FORMAT, **asdict(self)}
        write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def load_profile(path: Path) -> LatencyProfile:
    """Reads a file of `LatencyProfile.save`.

    Raises:
        ProfileError: the file is missing, corrupt, of another schema, or holds impossible values.
    """
    try:
        record = read_json(path)
        schema = record.get("format") if isinstance(record, dict) else type(record).__name__
        if schema != FORMAT:
            raise ValueError(f"expected {FORMAT!r}, got {schema!r}.")
        return LatencyProfile(
            greedy=_costs(record["greedy"]),
            sampled=_costs(record["sampled"]),
            origin=dict(record["origin"]),
            points=tuple(_facts(Point, point) for point in record["points"]),
            checks=tuple(_facts(Check, check) for check in record["checks"]),
        )
    except OSError as error:
        raise ProfileError(f"There is no latency profile to read at {path} ({error.strerror}). {_REPAIR}") from error
    except WRONG_VALUES as error:
        reason = f"expected the key {error}, got none." if isinstance(error, KeyError) else error
        raise ProfileError(
            f"{path} is no latency profile of this version: {str(reason).rstrip('.')}. {_REPAIR}"
        ) from error


def _costs(record: dict[str, Any]) -> RoundCosts:
    if unknown := sorted(set(record) - {field.name for field in fields(RoundCosts)}):
        raise ValueError(f"expected only keys of round costs, got {', '.join(unknown)}.")
    contexts = _counts("contexts", record["contexts"])
    curves: dict[str, Any] = {name: _curve(record[name]) for name in CURVES}
    numbers: dict[str, Any] = {name: _seconds(record[name]) for name in ("root_row", "overhead", "lookup")}
    return RoundCosts(contexts=contexts, **curves, **numbers)


def _curve(record: dict[str, Any]) -> Curve:
    seconds = tuple(tuple(map(_seconds, line)) for line in record["seconds"])
    return Curve(str(record["what"]), _counts("rows", record["rows"]), seconds)


def _counts(name: str, values: list[Any]) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError(f"expected {name} to be whole numbers.")
    return tuple(values)


def _seconds(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"expected times to be numbers, got {value!r:.60}.")
    return float(value)


Facts = TypeVar("Facts", Point, Check)


def _facts(kind: type[Facts], record: dict[str, Any]) -> Facts:
    """Returns a record as a dataclass, with values of the types of its fields. Raises `TypeError`, `ValueError`."""
    made = kind(**record)
    check_types(vars(made), **{field.name: _TYPES[str(field.type)] for field in fields(kind)})
    return made

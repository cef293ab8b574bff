"""The latency profile of one machine and pair: its costs, where they come from, and the file that keeps them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

from specgym.env.common.errors import SpecGymError
from specgym.env.common.files import write_text
from specgym.env.latency.costs import RoundCosts
from specgym.env.latency.curve import Curve

JSON: TypeAlias = Any

FORMAT = "specgym latency profile 1"
"""schema and version of the file"""
_REPAIR = "Give the path of a profile that scripts.measure_latency wrote, or run it again."


class ProfileError(SpecGymError, ValueError):
    """A latency profile that is missing, corrupt or of another schema; the message names the file."""


@dataclass(frozen=True)
class Point:
    """What was measured in one cell, kept beside the curve that was fitted to it."""

    greedy: bool
    """whether tokens were chosen greedily"""
    stage: str
    """``plain``, ``root``, ``level``, ``verify``, ``overhead``, ``lookup`` or ``prompt`` (the draft's own reading)"""
    context: int
    """median position of the roots in this cell's rounds [tokens]"""
    rows: int
    """rows of the forward; 1 where there are none to count"""
    seconds: float
    """median [s]"""
    count: int
    """measurements"""


@dataclass(frozen=True)
class Check:
    """Predicted against measured time of one controller's real texts."""

    controller: str
    """its name"""
    greedy: bool
    """whether tokens were chosen greedily"""
    texts: int
    """texts generated"""
    rounds: int
    """rounds that the controller steered, all texts together"""
    measured: float
    """time of those rounds [s]"""
    predicted: float
    """what the profile foretells for the very same rounds [s]"""
    error: float
    """median over the texts of ``|predicted - measured| / measured``"""
    measured_steps: float = 0.0
    """time of a token in plain steps, by plain rounds of the same text before and behind: median over the texts; 0 in a
    profile of before this was measured"""
    predicted_steps: float = 0.0
    """what the profile foretells of that"""
    steps_error: float = 0.0
    """median over the texts of ``|predicted_steps - measured_steps| / measured_steps``"""


@dataclass(frozen=True)
class LatencyProfile:
    """Costs of rounds, greedy and sampled, of one machine and pair."""

    greedy: RoundCosts
    """at temperature 0"""
    sampled: RoundCosts
    """at temperature above 0: noise over the vocabulary for every row, of the target and of the draft"""
    origin: dict[str, JSON] = field(default_factory=dict)
    """machine, pair, versions, revision, date and settings; or the family and its parameters"""
    points: tuple[Point, ...] = ()
    """what was measured; none for a family"""
    checks: tuple[Check, ...] = ()
    """how well it foretold real texts in the run that measured it"""

    def costs(self, greedy: bool) -> RoundCosts:
        """The costs for one way of decoding."""
        return self.greedy if greedy else self.sampled

    def save(self, path: Path) -> None:
        """Writes the profile as JSON. Raises `FileWriteError`."""
        record = {"format": FORMAT, **asdict(self)}
        write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def load_profile(path: Path) -> LatencyProfile:
    """Reads what `LatencyProfile.save` wrote.

    Raises:
        ProfileError: the file is missing, corrupt, of another schema, or says what cannot be.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"There is no latency profile to read at {path} ({error.strerror}). {_REPAIR}") from error
    except ValueError as error:
        raise ProfileError(f"{path} is corrupt: expected JSON, got text that is not ({error}). {_REPAIR}") from error
    found = record.get("format") if isinstance(record, dict) else type(record).__name__
    if found != FORMAT:
        raise ProfileError(
            f"{path} is no latency profile of this version: expected {FORMAT!r}, got {found!r}. {_REPAIR}"
        )
    try:
        return LatencyProfile(
            greedy=_costs(record["greedy"]),
            sampled=_costs(record["sampled"]),
            origin=dict(record["origin"]),
            points=tuple(Point(**point) for point in record["points"]),
            checks=tuple(Check(**check) for check in record["checks"]),
        )
    except KeyError as error:
        raise ProfileError(f"{path} is corrupt: expected the key {error}, got none. {_REPAIR}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ProfileError(f"{path} is corrupt: {error} {_REPAIR}") from error


def _costs(record: dict[str, JSON]) -> RoundCosts:
    if unknown := sorted(set(record) - {field.name for field in fields(RoundCosts)}):
        raise ValueError(f"expected no key but those of round costs, got {', '.join(unknown)}.")
    return RoundCosts(
        contexts=tuple(int(context) for context in record["contexts"]),
        plain=_curve(record["plain"]),
        root=_curve(record["root"]),
        level=_curve(record["level"]),
        verify=_curve(record["verify"]),
        root_row=float(record["root_row"]),
        overhead=float(record["overhead"]),
        lookup=float(record["lookup"]),
    )


def _curve(record: dict[str, JSON]) -> Curve:
    rows = tuple(int(rows) for rows in record["rows"])
    seconds = tuple(tuple(float(value) for value in line) for line in record["seconds"])
    return Curve(str(record["what"]), rows, seconds)

"""Results are read back exactly as written, or refused with a message that says why."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specgym.controllers.evaluation.results.schema import (
    SCHEMA_VERSION,
    Failure,
    Results,
    decode,
    from_json,
    read_record,
    to_json,
)
from specgym.env.common.errors import ParameterError, SpecGymError
from tests.support.rows import make_results, make_row


def test_results_come_back_from_json_equal() -> None:
    results = make_results(failures=[Failure("tree", "c", 1, "NumericalError: NaN logits")])
    assert results.rows
    assert results.failures, "the test would be vacuous"
    assert results.controllers["tree"].speedup_ci95 is not None
    assert results.controllers["tree"].by_category
    assert from_json(Results, to_json(results)) == results


def test_readers_find_the_promised_keys() -> None:
    tree = json.loads(to_json(make_results()))["controllers"]["tree"]
    promised = {"tokens_per_second", "speedup", "speedup_ci95", "mean_accepted_tokens", "acceptance_rate"}
    assert promised | {"identical_outputs", "prompts", "controller_share"} <= set(tree)


def test_json_holds_null_where_a_number_is_not_finite() -> None:
    row = make_row("plain", "a", 1.0, top2_gap=math.inf, seconds_by_part={"verify": np.float32(0.5)})
    results = replace(make_results([row]), settings={"threshold": math.nan, "levels": [1.0, -math.inf]})
    data = json.loads(to_json(results), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert data["settings"] == {"threshold": None, "levels": [1.0, None]}
    assert data["rows"][0]["top2_gap"] is None
    assert data["rows"][0]["seconds_by_part"] == {"verify": 0.5}


def _set(data: Any, *path: Any, to: Any) -> None:
    for key in path[:-1]:
        data = data[key]
    data[path[-1]] = to


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: _set(d, "mood", to=1), r"results: expected only the keys schema_version.*unknown keys mood"),
        (lambda d: _set(d, "rows", 1, "tokns", to=1), r"results\.rows\[1\]: .*unknown keys tokns"),
        (lambda d: d["machine"].pop("cores"), r"results\.machine: .*missing keys cores"),
        (lambda d: d["controllers"]["tree"].pop("speedup"), r"results\.controllers\.tree: .*missing keys speedup"),
        (lambda d: d.pop("schema_version"), r"missing keys schema_version"),
        (lambda d: _set(d, "schema_version", to=2), rf"schema_version: expected {SCHEMA_VERSION}, came 2\..*run the"),
        (lambda d: _set(d, "complete", to=1), r"results\.complete: expected a value of type bool, came 1"),
        (
            lambda d: _set(d, "rows", 0, "tokens", to=True),
            r"rows\[0\]\.tokens: expected a value of type int, came True",
        ),
        (lambda d: _set(d, "rows", 0, "seconds", to="1"), r"rows\[0\]\.seconds: expected a value of type float"),
        (lambda d: _set(d, "controllers", "tree", "speedup_ci95", to=[1.0]), r"speedup_ci95: expected a list of 2"),
        (lambda d: _set(d, "failures", to={}), r"results\.failures: expected a list, came \{\}"),
        (lambda d: _set(d, "kind", to="guess"), r"kind: expected one of benchmark, evaluation, compare, came 'guess'"),
    ],
)
def test_what_does_not_fit_the_schema_is_refused_by_name(change: Callable[[Any], None], message: str) -> None:
    data = json.loads(to_json(make_results()))
    change(data)
    with pytest.raises(ParameterError, match=message):
        from_json(Results, json.dumps(data))


@pytest.mark.parametrize("text", ["", "[1, 2", "[]", '{"schema_version": NaN}', '"text"'])
def test_text_that_is_no_results_object_is_a_clear_error(text: str) -> None:
    with pytest.raises(SpecGymError, match=r"(?i)expected .*came"):
        from_json(Results, text)


def test_a_long_wrong_value_is_shortened_in_the_message() -> None:
    data = json.loads(to_json(make_results()))
    data["settings"] = ["x" * 10_000]
    with pytest.raises(ParameterError) as caught:
        from_json(Results, json.dumps(data))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": 0},
        {"seconds": 0.0},
        {"seconds": math.nan},
        {"seconds_by_part": {"verfy": 1.0}},
        {"seconds_by_part": {"verify": -1.0}},
    ],
)
def test_a_measurement_that_cannot_be_is_refused_when_the_row_is_made(changes: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=r"'tree' on prompt 'a': expected .* came .*failure"):
        make_row("tree", "a", **({"seconds": 1.0} | changes))


@dataclass(frozen=True)
class _Part:
    name: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class _Whole:
    schema_version: int = 3
    parts: list[_Part] = field(default_factory=list)
    pair: tuple[str, float] | None = None


def test_any_dataclass_can_be_read_and_written(tmp_path: Path) -> None:
    whole = _Whole(parts=[_Part("a", (1, 2, 3)), _Part("b", ())], pair=("x", 0.5))
    (tmp_path / "whole.json").write_text(to_json(whole), encoding="utf-8")
    assert read_record(_Whole, tmp_path / "whole.json") == whole
    assert decode(list[_Part], [{"name": "a", "sizes": [1]}], "parts") == [_Part("a", (1,))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 4, "more": 1}', r"whole\.json: _whole\.schema_version: expected 3, came 4"),
        (
            '{"schema_version": 3, "parts": [{"name": "a", "sizes": ["1"]}], "pair": null}',
            r"parts\[0\]\.sizes\[0\]: .*int",
        ),
        ('{"schema_version": 3, "parts": [], "pair": ["x"]}', r"pair: expected a list of 2, came \['x'\]"),
        ("{", r"whole\.json: Expected JSON, came text that breaks off"),
    ],
)
def test_a_file_that_does_not_fit_its_dataclass_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "whole.json").write_text(text, encoding="utf-8")
    with pytest.raises(ParameterError, match=message):
        read_record(_Whole, tmp_path / "whole.json")

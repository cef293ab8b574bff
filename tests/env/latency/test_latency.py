"""A latency profile predicts a round from its rows, refuses unknown rows, and survives its file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgym.env.common.errors import LimitError, ParameterError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.latency.costs import Curve, RoundCosts, UnmeasuredError
from specgym.env.latency.families import (
    FAMILIES,
    STEP,
    CommonCosts,
    bandwidth_bound,
    compute_bound,
    drawn_machine,
    overhead_bound,
)
from specgym.env.latency.latency_profile import FORMAT, Check, LatencyProfile, Point, ProfileError, load_profile
from specgym.env.tree.rounds import Request
from tests.support.tiny_models import causal_draft, make_prompt, tiny_target

COSTS = RoundCosts(
    contexts=(100, 300),
    plain=Curve("plain steps", (1,), ((10.0,), (14.0,))),
    root=Curve("owed tokens", (1, 3), ((2.0, 4.0), (4.0, 6.0))),
    level=Curve("expanded nodes", (1, 5), ((1.0, 3.0), (1.0, 3.0))),
    verify=Curve("verified rows", (1, 2, 9), ((9.0, 12.0, 19.0), (13.0, 16.0, 37.0))),
    root_row=0.5,
    overhead=0.25,
    lookup=0.125,
)
PROFILE = LatencyProfile(
    COSTS,
    dataclasses.replace(COSTS, overhead=0.75),
    {"target": "some", "machine": {"cpu": "one", "threads": 2}},
    (Point(True, "verify", 100, 9, 19.5, 4),),
    (Check("history", False, 3, 40, 1.5, 1.25, 0.04),),
)

Round: TypeAlias = tuple[int, list[int], int, int]
LEVELS = st.tuples(st.integers(1, 300), st.lists(st.integers(1, 5), max_size=4)).map(lambda rows: [rows[0], *rows[1]])
ROUNDS = st.tuples(st.integers(0, 1000), st.just([]) | LEVELS, st.integers(1, 9), st.integers(0, 9))
"""context, level rows, verified rows, nodes of lookup"""


def at_one_context(costs: RoundCosts) -> RoundCosts:
    curves = {name: getattr(costs, name) for name in ("plain", "root", "level", "verify")}
    first = {name: dataclasses.replace(curve, seconds=curve.seconds[:1]) for name, curve in curves.items()}
    return dataclasses.replace(costs, contexts=costs.contexts[:1], **first)


class TestPrediction:
    def test_a_round_costs_what_its_parts_cost(self) -> None:
        # At 100: overhead 0.25, root(2) 3, level(1) 1, level(4) 2.5, verify(3) 13, three nodes of lookup 0.375.
        assert COSTS.round_seconds(100, (2, 1, 4), 3, 3) == pytest.approx(0.25 + 3 + 1 + 2.5 + 13 + 0.375)
        assert COSTS.round_seconds(100, (), 9, 4) == pytest.approx(0.25 + 19 + 0.5)

    def test_a_round_that_does_nothing_but_verify_the_root_is_a_plain_step(self) -> None:
        assert COSTS.round_seconds(100, (), 1) == COSTS.plain_seconds(100) == 10
        assert COSTS.round_seconds(220, (), 1) == COSTS.plain_seconds(220)
        # A draft forward without candidates: that is no plain step.
        assert COSTS.round_seconds(100, (1,), 1) == pytest.approx(0.25 + 2 + 9)

    def test_costs_are_linear_between_and_past_contexts_and_constant_below_the_first(self) -> None:
        found = [COSTS.round_seconds(context, (), 9, 0) - 0.25 for context in (0, 100, 200, 300, 400)]
        assert found == pytest.approx([19, 19, 28, 37, 46])
        assert [COSTS.plain_seconds(context) for context in (0, 150, 500)] == pytest.approx([10, 11, 18])

    def test_tokens_owed_past_the_curve_cost_the_same_each(self) -> None:
        assert COSTS.round_seconds(100, (3,), 2) == pytest.approx(0.25 + 4 + 12)
        assert COSTS.round_seconds(100, (103,), 2) == pytest.approx(0.25 + 4 + 50 + 12)

    @pytest.mark.parametrize(
        ("level_rows", "verified", "message"),
        [
            ((1, 6), 2, r"knows the cost of 1 to 5 expanded nodes; got 6\. Request a smaller tree, or measure"),
            ((1,), 10, "1 to 9 verified rows; got 10"),
            ((1,), 0, "1 to 9 verified rows; got 0"),
            ((-1,), 2, "1 to 3 owed tokens; got -1"),
        ],
    )
    def test_unmeasured_rows_are_refused(self, level_rows: tuple[int, ...], verified: int, message: str) -> None:
        with pytest.raises(UnmeasuredError, match=message):
            COSTS.round_seconds(100, level_rows, verified)
        with pytest.raises(LimitError, match=message):
            COSTS.rounds_seconds([100, 200], np.array([[1, 0], [*level_rows, 0][:2]]), [2, verified])

    @given(st.lists(ROUNDS, min_size=1), st.booleans())
    def test_many_rounds_at_once_equal_single_ones(self, rounds: list[Round], one_context: bool) -> None:
        costs = at_one_context(COSTS) if one_context else COSTS
        rows = np.zeros((len(rounds), 5), np.int64)
        for row, (_, level_rows, _, _) in zip(rows, rounds, strict=True):
            row[: len(level_rows)] = level_rows
        contexts, _, verified, looked_up = zip(*rounds, strict=True)
        single = [costs.round_seconds(*arguments) for arguments in rounds]
        np.testing.assert_allclose(costs.rounds_seconds(contexts, rows, verified, looked_up), single, rtol=1e-12)

    def test_arguments_of_many_rounds_broadcast(self) -> None:
        found = COSTS.rounds_seconds(np.array([[100], [300]]), np.array([2, 4]), np.array([3, 4, 5]))
        assert found.shape == (2, 3)
        assert found[1, 2] == pytest.approx(COSTS.round_seconds(300, (2, 4), 5))
        assert COSTS.rounds_seconds(100, np.zeros(0, np.int64), 1) == COSTS.plain_seconds(100)


class TestMarginalCosts:
    def test_they_are_in_plain_steps_at_the_context(self) -> None:
        assert COSTS.level_cost(100) == pytest.approx(1 / 10)
        assert COSTS.level_cost(100, rows=5) == pytest.approx(3 / 10)
        assert COSTS.level_cost(300) == pytest.approx(1 / 14)
        assert COSTS.row_cost(100) == pytest.approx(1 / 10)
        assert COSTS.row_cost(300) == pytest.approx(3 / 14)
        assert COSTS.row_cost(100, verified=1, more=1) == pytest.approx(3 / 10)

    def test_a_row_past_the_curve_is_refused(self) -> None:
        assert COSTS.row_cost(100, verified=8) == pytest.approx(1 / 10)
        with pytest.raises(UnmeasuredError, match="1 to 9 verified rows; got 10"):
            COSTS.row_cost(100, verified=9)

    def test_they_are_what_an_observation_shows(self) -> None:
        target = tiny_target()
        decoder = LiveDecoder(target, causal_draft(target), COSTS)
        decoder.start(Request(make_prompt(1), 20))
        seen = decoder.observe()
        assert (seen.level_cost, seen.row_cost) == (COSTS.level_cost(9), COSTS.row_cost(9))


class TestBadCosts:
    @pytest.mark.parametrize(
        ("rows", "seconds", "message"),
        [
            ((), ((),), "needs ascending rows from 1 on"),
            ((0, 1), ((1.0, 1.0),), "needs ascending rows from 1 on"),
            ((2, 2), ((1.0, 1.0),), "needs ascending rows from 1 on"),
            ((1, 2), ((1.0,),), "needs 2 times; got 1"),
            ((1,), ((-1.0,),), "finite and 0 or more"),
            ((1,), ((float("nan"),),), "finite and 0 or more"),
        ],
    )
    def test_an_impossible_curve_is_refused(self, rows: Any, seconds: Any, message: str) -> None:
        with pytest.raises(ParameterError, match=message):
            Curve("verified rows", rows, seconds)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"contexts": (300, 100)}, "ascending contexts"),
            ({"contexts": ()}, "ascending contexts"),
            ({"contexts": (1, 2, 3)}, r"each of 3 contexts; got \{'plain': 2, "),
            ({"overhead": -1.0}, "finite and 0 or more"),
            ({"lookup": float("inf")}, "finite and 0 or more"),
            ({"plain": Curve("plain steps", (1,), ((0.0,), (1.0,)))}, "A plain step must take time"),
        ],
    )
    def test_impossible_costs_are_refused(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ParameterError, match=message):
            dataclasses.replace(COSTS, **changes)


class TestFile:
    def test_a_profile_comes_back_as_it_was(self, tmp_path: Path) -> None:
        for number, profile in enumerate([PROFILE, bandwidth_bound()]):
            profile.save(tmp_path / f"{number}.json")
            assert load_profile(tmp_path / f"{number}.json") == profile

    def test_a_missing_profile_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ProfileError, match=r"no latency profile .*gone\.json .*`specgym measure-latency`"):
            load_profile(tmp_path / "gone.json")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format": "specgym latency profile 0"}, f"expected '{FORMAT}', got 'specgym latency profile 0'"),
            ({"format": None}, f"expected '{FORMAT}', got None"),
            ({"points": [{"stage": "verify"}]}, "is no latency profile of this version"),
            ({"greedy": {}}, "expected the key 'contexts', got none"),
            ({"sampled": 3}, "is no latency profile of this version"),
        ],
    )
    def test_another_schema_or_a_wrong_value_is_refused_by_name(
        self, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        path = self.changed(tmp_path, change)
        with pytest.raises(ProfileError, match=message) as refused:
            load_profile(path)
        assert str(refused.value).startswith(f"{path} is ")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"overhead": -3}, "finite and 0 or more"),
            ({"contexts": [1]}, "each of 1 contexts"),
            ({"speed": 1}, "only keys of round costs, got speed"),
            ({"verify": {"what": "rows", "rows": [2, 1], "seconds": [[1, 2], [1, 2]]}}, "ascending rows"),
        ],
    )
    def test_impossible_costs_are_refused_with_the_files_name(
        self, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        path = self.changed(tmp_path, {"greedy": json.loads(json.dumps(dataclasses.asdict(COSTS))) | change})
        with pytest.raises(ProfileError, match=message) as refused:
            load_profile(path)
        assert str(refused.value).startswith(f"{path} is no latency profile of this version: ")

    @pytest.mark.parametrize("text", ["", "[1, 2]", "{", "\x00", "null"])
    def test_a_file_that_is_something_else_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "profile.json").write_text(text, encoding="utf-8")
        with pytest.raises(ProfileError, match=r"profile\.json is "):
            load_profile(tmp_path / "profile.json")

    @staticmethod
    def changed(folder: Path, change: dict[str, Any]) -> Path:
        PROFILE.save(folder / "profile.json")
        record = json.loads((folder / "profile.json").read_text(encoding="utf-8"))
        (folder / "profile.json").write_text(json.dumps(record | change), encoding="utf-8")
        return folder / "profile.json"


class TestFamilies:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_a_plain_step_is_the_unit(self, name: str) -> None:
        profile = FAMILIES[name]()
        assert profile.greedy.plain_seconds(0) == pytest.approx(STEP)
        assert profile.sampled.plain_seconds(0) == pytest.approx(1.005 * STEP)
        assert profile.greedy.plain_seconds(2048) == pytest.approx(1.06 * STEP)
        assert profile.origin["family"] == name

    def test_rows_cost_next_to_nothing_where_launching_decides(self) -> None:
        assert self.verified(overhead_bound(row=0.001), 2, 101) == pytest.approx([1.001, 1.1])

    def test_rows_are_free_up_to_the_knee_where_bandwidth_decides(self) -> None:
        assert self.verified(bandwidth_bound(knee=20.0), 1, 20, 40) == pytest.approx([1, 1, 2])

    def test_every_row_costs_where_computing_decides(self) -> None:
        assert self.verified(compute_bound(fixed=0.7), 1, 2, 11) == pytest.approx([1, 1.3, 4])

    @pytest.mark.parametrize("name", FAMILIES)
    def test_common_costs_are_what_they_say(self, name: str) -> None:
        common = CommonCosts(draft_ratio=0.25, round_overhead=0.5, context_growth=0.0, sampled_row=0.01)
        profile = FAMILIES[name](common)
        assert profile.greedy.level_cost(0) == profile.greedy.level_cost(900) == pytest.approx(0.25)
        bare = (profile.greedy.round_seconds(0, (), 3) - profile.greedy.verify.table[0, 3]) / STEP
        assert bare == pytest.approx(0.5)
        noise = profile.sampled.verify.table - profile.greedy.verify.table
        assert noise[0, 50] / STEP == pytest.approx(0.5)

    @given(seed=st.integers(0, 2**32 - 1))
    def test_a_drawn_machine_has_its_parameters_costs_and_depends_on_the_seed_alone(self, seed: int) -> None:
        machine = drawn_machine(np.random.default_rng(seed))
        assert machine == drawn_machine(np.random.default_rng(seed)) != drawn_machine(np.random.default_rng(seed + 1))
        own = machine.origin["parameters"]
        assert machine.greedy.plain_seconds(0) == pytest.approx(STEP)
        assert machine.greedy.level_cost(0) == pytest.approx(own["draft_ratio"])
        for rows, steps in zip((2, 9, 300), self.verified(machine, 2, 9, 300), strict=True):
            assert steps == pytest.approx(max(1 + own["row"] * (rows - 1), rows / own["knee"]))

    @pytest.mark.parametrize("name", FAMILIES)
    @given(context=st.integers(0, 9000), owed=st.integers(1, 900), width=st.integers(1, 500), rows=st.integers(2, 500))
    def test_more_never_costs_less(self, name: str, context: int, owed: int, width: int, rows: int) -> None:
        costs = FAMILIES[name]().sampled
        least = costs.round_seconds(context, (owed, width), rows) * (1 + 1e-12)
        assert least >= costs.round_seconds(context, (owed,), rows)
        for more in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)):
            grown = costs.round_seconds(context + more[0], (owed + more[1], width + more[2]), rows + more[3])
            assert grown * (1 + 1e-9) >= least

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: overhead_bound(row=-1.0), "row must be finite and 0 or more; got -1"),
            (lambda: bandwidth_bound(knee=0.5), "knee must be finite and 1 or more; got 0.5"),
            (lambda: bandwidth_bound(knee=float("inf")), "knee must be finite"),
            (lambda: compute_bound(fixed=1.5), "fixed must be finite and within 0 and 1; got 1.5"),
            (lambda: CommonCosts(draft_ratio=float("nan")), "draft_ratio must be finite and 0 or more; got nan"),
        ],
    )
    def test_a_parameter_out_of_range_is_named(self, make: Callable[[], object], message: str) -> None:
        with pytest.raises(ParameterError, match=message):
            make()

    @staticmethod
    def verified(profile: LatencyProfile, *rows: int) -> list[float]:
        """Verifications in plain steps."""
        return [float(profile.greedy.verify.table[0, number]) / STEP for number in rows]

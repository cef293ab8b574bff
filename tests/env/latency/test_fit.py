"""Fitted curves rise with rows and context, and recover the costs behind the measurements."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import isotonic_regression

from specgym.env.common.arrays import FloatArray
from specgym.env.latency.costs import RoundCosts
from specgym.env.latency.families import compute_bound
from specgym.env.latency.fit import Sample, at_one_speed, fit_costs, fit_profile, monotone, summarise
from specgym.env.latency.latency_profile import ProfileError

KNOTS = {"root": (1, 2, 3, 4, 8), "level": (1, 2, 4, 8, 16), "verify": (1, 2, 4, 8, 16, 32)}
BUCKETS = (100, 600, 1500)
TRUTH = compute_bound().sampled

TABLES = st.tuples(st.integers(1, 4), st.integers(1, 5)).flatmap(
    lambda shape: st.tuples(
        arrays(np.float64, shape, elements=st.floats(-5, 5)), arrays(np.float64, shape, elements=st.floats(0.1, 9))
    )
)


class TestMonotone:
    @given(TABLES)
    def test_it_rises_and_no_other_table_that_rises_is_closer(self, table: tuple[FloatArray, FloatArray]) -> None:
        values, weights = table
        fitted = monotone(values, weights)
        assert (np.diff(fitted, axis=0) >= 0).all()
        assert (np.diff(fitted, axis=1) >= 0).all()
        # A projection on a cone: the residual is square to the fit and at an obtuse angle to every table that rises.
        residual = weights * (values - fitted)
        assert abs((residual * fitted).sum()) < 1e-3
        for row in range(values.shape[0]):
            for column in range(values.shape[1]):
                assert residual[row:, column:].sum() < 1e-3

    @given(arrays(np.float64, (3, 4), elements=st.floats(0, 5)))
    def test_a_table_that_rises_stays_as_it_is(self, steps: FloatArray) -> None:
        rising = steps.cumsum(axis=0).cumsum(axis=1)
        np.testing.assert_allclose(monotone(rising, np.ones_like(rising)), rising, atol=1e-6)

    @given(arrays(np.float64, (1, 6), elements=st.floats(-5, 5)))
    def test_of_one_line_it_is_the_isotonic_regression(self, line: FloatArray) -> None:
        expected = isotonic_regression(line[0]).x
        np.testing.assert_allclose(monotone(line, np.ones_like(line))[0], expected, atol=1e-6)


class TestOneSpeed:
    def test_visits_are_scaled_to_one_speed(self) -> None:
        kinds = [(greedy, bucket) for greedy in (True, False) for bucket in BUCKETS]
        steady = {kind: visit(*kind) for kind in kinds}
        visits = [
            [dataclasses.replace(sample, seconds=sample.seconds * slower) for sample in steady[kind]]
            for kind in kinds
            for slower in (1.0, 0.9, 1.25)
        ]
        found = at_one_speed(visits)
        expected = [sample for kind in kinds for sample in 3 * steady[kind]]
        assert [dataclasses.replace(sample, seconds=0) for sample in found] == [
            dataclasses.replace(sample, seconds=0) for sample in expected
        ]
        np.testing.assert_allclose([each.seconds for each in found], [each.seconds for each in expected])

    def test_a_visit_without_a_plain_step_stays_as_it_is(self) -> None:
        samples = [sample for sample in visit(True, 100) if sample.stage != "plain"]
        assert at_one_speed([samples, visit(True, 100)])[: len(samples)] == samples


def visit(greedy: bool, bucket: int) -> list[Sample]:
    """Five plain steps, of which one was disturbed, and two other measurements."""
    times = [*[("plain", seconds) for seconds in (1.0, 9.0, 1.0, 1.0, 1.0)], ("verify", 3.0), ("level", 0.5)]
    return [Sample(greedy, stage, bucket, bucket, 1, seconds * bucket) for stage, seconds in times]


def sampled(costs: RoundCosts, noise: float, repeats: int = 9, seed: int = 0) -> list[Sample]:
    """Measurements of known costs, each with lognormal noise, one in nine of them disturbed by something else."""
    order, samples = random.Random(seed), []

    def note(bucket: int, stage: str, rows: int, seconds: float) -> None:
        for repeat in range(repeats):
            disturbed = 5.0 if repeat % 9 == 3 else 1.0
            value = seconds * disturbed * order.lognormvariate(0.0, noise)
            samples.append(Sample(False, stage, bucket, bucket + 40 + repeat, rows, value))

    for bucket in BUCKETS:
        middle = bucket + 40 + repeats // 2
        low, share = costs._between(middle)
        note(bucket, "plain", 1, costs.plain_seconds(middle))
        note(bucket, "overhead", 1, costs.overhead)
        note(bucket, "lookup", 1, 1e-5)
        for stage, rows in KNOTS.items():
            for number in rows:
                note(bucket, stage, number, getattr(costs, stage).at(low, share, number))
        note(bucket, "prompt", bucket, costs.root.at(low, share, KNOTS["root"][-1]) + costs.root_row * (bucket - 8))
    return samples


class TestFit:
    def test_known_costs_are_found_again_through_noise_and_outliers(self) -> None:
        found = fit_costs(summarise(sampled(TRUTH, 0.1), greedy=False), KNOTS)
        assert found.contexts == (144, 644, 1544)
        rounds = [
            (context, (owed, width, width), verified)
            for context in (144, 400, 1544)
            for owed in (1, 8, 300)
            for width in (1, 5, 16)
            for verified in (2, 7, 32)
        ]
        error = [found.round_seconds(*each) / TRUTH.round_seconds(*each) - 1 for each in rounds]
        assert np.abs(error).max() < 0.1
        assert np.abs(error).mean() < 0.04

    def test_without_noise_they_are_found_exactly(self) -> None:
        found = fit_costs(summarise(sampled(TRUTH, 0.0), greedy=False), KNOTS)
        for each in [(144, (3, 8), 16), (900, (400, 2, 4), 2), (1544, (), 1)]:
            assert found.round_seconds(*each) == pytest.approx(TRUTH.round_seconds(*each))
        assert found.lookup == pytest.approx(1e-5)

    def test_an_unmeasured_cell_is_filled_from_its_neighbours(self) -> None:
        points = summarise(sampled(TRUTH, 0.0), greedy=False)
        fewer = [point for point in points if not (point.context == 644 and point.stage == "root" and point.rows == 3)]
        assert len(fewer) == len(points) - 1
        whole, found = fit_costs(points, KNOTS).root.table, fit_costs(fewer, KNOTS).root.table
        np.testing.assert_allclose(found, whole, rtol=0.02)
        assert found[0, 3] <= found[1, 3] <= found[2, 3]

    def test_an_unmeasured_knot_is_left_out(self) -> None:
        points = [point for point in summarise(sampled(TRUTH, 0.0), greedy=False) if point.rows != 2]
        assert fit_costs(points, KNOTS).level.rows == (1, 4, 8, 16)

    def test_rows_that_are_no_knot_do_not_count(self) -> None:
        points = summarise(sampled(TRUTH, 0.0), greedy=False)
        odd = [dataclasses.replace(points[0], stage="verify", rows=5, seconds=99.0)]
        assert fit_costs([*points, *odd], KNOTS) == fit_costs(points, KNOTS)

    def test_levels_of_a_pair_without_a_draft_model_cost_nothing(self) -> None:
        points = [
            point for point in summarise(sampled(TRUTH, 0.0), greedy=False) if point.stage not in ("root", "level")
        ]
        found = fit_costs(points, {"root": (), "level": (), "verify": KNOTS["verify"]})
        assert found.level_cost(144) == found.root_row == 0
        assert found.round_seconds(144, (), 16) == pytest.approx(TRUTH.round_seconds(144, (), 16))

    @pytest.mark.parametrize(
        ("stage", "context", "message"),
        [
            ("verify", None, r"No verify was measured near context \[144, 644, 1544\]"),
            ("level", 644, r"No level was measured near context \[644\]"),
            ("overhead", None, "No overhead was measured. Give more minutes"),
            ("prompt", None, "No prompt of more than 8 tokens was read. Give longer contexts"),
        ],
    )
    def test_a_stage_that_was_not_measured_is_named(self, stage: str, context: int | None, message: str) -> None:
        points = summarise(sampled(TRUTH, 0.0), greedy=False)
        left = [point for point in points if point.stage != stage or (context and point.context != context)]
        with pytest.raises(ProfileError, match=message):
            fit_costs(left, KNOTS)

    def test_greedy_and_sampled_measurements_do_not_mix(self) -> None:
        slow = sampled(TRUTH, 0.0)
        fast = [dataclasses.replace(sample, greedy=True, seconds=sample.seconds / 2) for sample in slow]
        profile = fit_profile([*slow, *fast], KNOTS, {"who": "me"})
        assert profile.sampled.plain_seconds(600) == pytest.approx(2 * profile.greedy.plain_seconds(600))
        assert profile.origin == {"who": "me"}
        assert {point.greedy for point in profile.points} == {True, False}
        assert sum(point.count for point in profile.points) == len(slow) + len(fast)

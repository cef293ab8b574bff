"""A calibrator keeps the order of probabilities, survives its file, and refuses a broken one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgym.env.common.arrays import FloatArray
from specgym.env.common.errors import ModelFileError
from specgym.env.drafts.calibrator import CalibrationMap, Calibrator, load_calibrator, margins

RANKS, DEPTHS = 3, 2
NEUTRAL = CalibrationMap(np.ones(RANKS), np.ones(RANKS), np.zeros(RANKS), np.zeros((DEPTHS, RANKS)))


@st.composite
def maps(draw: st.DrawFn) -> CalibrationMap:
    slopes = st.lists(st.floats(0, 3), min_size=RANKS, max_size=RANKS)
    free = st.lists(st.floats(-3, 3), min_size=RANKS, max_size=RANKS)
    offsets = st.lists(free, min_size=DEPTHS, max_size=DEPTHS)
    return CalibrationMap(*(np.array(draw(part)) for part in (slopes, slopes, free, offsets)))


def make_calibrator() -> Calibrator:
    other = CalibrationMap(
        np.array([0.5, 1, 2]), np.array([0.25, 1, 0]), np.array([1.0, 0, -1]), np.array([[0.1, 0.2, 0.3], [1, 2, 3]])
    )
    return Calibrator(NEUTRAL, other)


def children(*probabilities: float) -> FloatArray:
    return np.log(np.array([probabilities]))


class TestMap:
    @given(maps(), st.floats(0.02, 0.98), st.floats(0.0, 0.98), st.integers(1, 5))
    def test_a_higher_probability_at_an_equal_margin_is_never_worth_less(
        self, fitted: CalibrationMap, second: float, rise: float, depth: int
    ) -> None:
        # Both children rise by the same amount, so that the first one's lead stays.
        lead = min(0.01, 0.98 - second)
        low, high = children(second + lead, second), None
        rise = min(rise, 0.99 - second - lead)
        high = children(second + lead + rise, second + rise)
        before, after = fitted.calibrate(low, depth), fitted.calibrate(high, depth)
        assert (after >= before - 1e-9).all()

    @given(st.lists(st.floats(1e-5, 1 - 1e-5), min_size=1, max_size=5), st.integers(1, 9))
    def test_a_neutral_map_changes_nothing(self, probabilities: list[float], depth: int) -> None:
        log_probs = children(*probabilities)
        np.testing.assert_allclose(NEUTRAL.calibrate(log_probs, depth), log_probs, rtol=1e-6, atol=1e-9)

    def test_an_empty_place_stays_empty(self) -> None:
        log_probs = np.array([[np.log(0.5), -np.inf, -np.inf]])
        calibrated = NEUTRAL.calibrate(log_probs, 1)
        assert np.isfinite(calibrated[0, 0])
        assert (calibrated[0, 1:] == -np.inf).all()

    def test_certainty_stays_finite(self) -> None:
        assert (np.isfinite(NEUTRAL.calibrate(np.array([[0.0, -50.0]]), 1))).all()

    def test_each_rank_and_depth_has_its_own_values_and_the_last_ones_apply_beyond(self) -> None:
        calibrator = make_calibrator()
        log_probs = children(0.4, 0.3, 0.2, 0.1)
        first, second, third = (calibrator.calibrate(log_probs, depth, greedy=False)[0] for depth in (1, 2, 3))
        odds = {rank: np.log(np.exp(row) / -np.expm1(row)) for rank, row in enumerate((first, second))}
        np.testing.assert_allclose((odds[1] - odds[0])[:3], [0.9, 1.8, 2.7])
        assert (third == second).all()
        # By hand: the fourth child goes by the third rank's values, with the node's margin of 0.1.
        assert odds[0][3] == pytest.approx(2 * np.log(0.1) - 1 * 0.1 + 0.3)

    def test_greedy_decoding_and_sampling_have_maps_of_their_own(self) -> None:
        calibrator = make_calibrator()
        log_probs = children(0.4, 0.3)
        np.testing.assert_allclose(calibrator.calibrate(log_probs, 1, greedy=True), log_probs)
        assert not np.allclose(calibrator.calibrate(log_probs, 1, greedy=False), log_probs)


def test_the_margin_is_the_first_childs_lead() -> None:
    assert margins(np.exp(children(0.6, 0.25, 0.1))) == pytest.approx([0.35])
    assert margins(np.exp(children(0.6))) == pytest.approx([0.6])
    assert margins(np.array([[0.6, 0.0]])) == pytest.approx([0.6])


class TestFile:
    def test_a_saved_calibrator_loads_unchanged(self, tmp_path: Path) -> None:
        calibrator = make_calibrator()
        calibrator.save(tmp_path / "calibrator.json")
        loaded = load_calibrator(tmp_path / "calibrator.json")
        log_probs = children(0.7, 0.2, 0.05)
        for greedy in (True, False):
            for depth in (1, 2):
                expected = calibrator.calibrate(log_probs, depth, greedy)
                np.testing.assert_allclose(loaded.calibrate(log_probs, depth, greedy), expected, atol=1e-5)

    @pytest.mark.parametrize(
        "change",
        [
            {"format": "something else"},
            {"greedy": {}},
            {"greedy": {"slope_low": [1], "slope_high": [1, 1], "margin": [0], "offset": [[0]]}},
            {"greedy": {"slope_low": [1, 1], "slope_high": [1, 1], "margin": [0, 0], "offset": [[0]]}},
            {"greedy": {"slope_low": [-1], "slope_high": [1], "margin": [0], "offset": [[0]]}},
            {"sampled": "text"},
        ],
        ids=str,
    )
    def test_a_broken_file_is_named(self, tmp_path: Path, change: dict[str, object]) -> None:
        path = tmp_path / "calibrator.json"
        make_calibrator().save(path)
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
        with pytest.raises(ModelFileError, match=str(path)):
            load_calibrator(path)

    @pytest.mark.parametrize("text", ["", "{", "[]"])
    def test_a_file_without_a_calibrator_is_named(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "calibrator.json"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ModelFileError, match=str(path)):
            load_calibrator(path)
        with pytest.raises(ModelFileError, match=str(tmp_path / "none.json")):
            load_calibrator(tmp_path / "none.json")

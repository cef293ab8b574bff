"""Summaries equal what a hand computes, and intervals deserve their name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from specgym.controllers.evaluation.results.schema import Failure
from specgym.controllers.evaluation.results.statistics import paired_ratio, summarise
from specgym.env.common.errors import ParameterError
from tests.support.rows import make_row, small_rows


def test_the_small_example_is_what_a_hand_computes() -> None:
    summaries = summarise(small_rows(), [], "plain", ["plain", "tree"])
    tree = summaries["tree"]
    assert tree.tokens_per_second == pytest.approx(40 / 10)
    assert tree.speedup == pytest.approx((40 / 10) / (40 / 15))
    assert tree.mean_accepted_tokens == pytest.approx(40 / 8)
    assert tree.acceptance_rate == pytest.approx(12 / 40)
    assert tree.mean_tree_size == pytest.approx(40 / 8)
    assert (tree.identical_outputs, tree.compared_outputs) == (1, 2)
    assert (tree.prompts, tree.failures) == (2, 0)
    expected = {"draft": 0.2, "verify": 0.4, "commit": 0.05, "controller": 0.05, "other": 0.3}
    assert tree.shares == pytest.approx(expected)
    assert tree.controller_share == pytest.approx(0.05)
    assert tree.engine_share == pytest.approx(1 - (1.0 + 3.0 + 0.5) / 10)
    assert tree.by_category["chat"].speedup == pytest.approx(9 / 6)
    assert tree.by_category["code"].tokens_per_second == pytest.approx(10 / 4)
    assert tree.by_category["code"].prompts == 1


def test_the_baseline_is_once_its_own_speed() -> None:
    plain = summarise(small_rows(), [], "plain", ["plain"])["plain"]
    assert plain.speedup == 1.0
    assert plain.speedup_ci95 == (1.0, 1.0)
    assert plain.acceptance_rate is None
    assert plain.identical_outputs is None
    assert plain.compared_outputs == 0


def test_a_prompt_counts_with_the_median_of_its_repeats() -> None:
    rows = [make_row("plain", "a", s, repeat=i) for i, s in enumerate((2.0, 2.0, 2.0))]
    rows += [make_row("tree", "a", s, repeat=i) for i, s in enumerate((1.0, 60.0, 0.5))]
    tree = summarise(rows, [], "plain", [])["tree"]
    assert tree.tokens_per_second == pytest.approx(10 / 1.0)
    assert tree.speedup == pytest.approx(2.0)
    assert tree.prompts == 1


def test_of_two_repeats_the_mean_counts_or_the_slower_if_their_lengths_differ() -> None:
    same = [make_row("plain", "a", 2.0), make_row("plain", "a", 4.0, repeat=1)]
    assert summarise(same, [], "plain", [])["plain"].tokens_per_second == pytest.approx(10 / 3)
    different = [make_row("plain", "a", 2.0), make_row("plain", "a", 4.0, repeat=1, tokens=12)]
    assert summarise(different, [], "plain", [])["plain"].tokens_per_second == pytest.approx(12 / 4)


def test_one_differing_repeat_makes_a_prompt_not_identical() -> None:
    rows = [make_row("tree", "a", 1.0, repeat=i, identical=i != 1) for i in range(3)]
    rows += [make_row("tree", "b", 1.0, repeat=i, identical=True) for i in range(3)]
    tree = summarise(rows, [], "plain", [])["tree"]
    assert (tree.identical_outputs, tree.compared_outputs) == (1, 2)


def test_speedup_uses_only_prompts_that_both_have() -> None:
    rows = [*small_rows(), make_row("plain", "only plain", 1000.0), make_row("tree", "only tree", 0.001)]
    tree = summarise(rows, [], "plain", [])["tree"]
    assert tree.prompts == 3
    assert tree.speedup == pytest.approx(15 / 10)


def test_failed_prompts_are_counted_once_and_left_out_of_everything() -> None:
    rows = [*small_rows(), make_row("tree", "c", 1e6, repeat=0), make_row("plain", "c", 1.0)]
    failures = [Failure("tree", "c", 1, "boom"), Failure("tree", "c", 2, "boom"), Failure("tree", "d", 0, "boom")]
    summaries = summarise(rows, failures, "plain", ["plain", "tree"])
    assert summaries["tree"].failures == 2
    assert summaries["tree"].prompts == 2
    assert summaries["tree"].speedup == pytest.approx(15 / 10)
    assert summaries["plain"].failures == 0
    assert summaries["plain"].prompts == 3


def test_a_controller_that_only_failed_has_no_numbers() -> None:
    tree = summarise([], [Failure("tree", "a", 0, "boom")], "plain", ["plain", "tree"])["tree"]
    assert (tree.prompts, tree.failures, tree.tokens_per_second, tree.speedup) == (0, 1, None, None)
    assert tree.shares == {}


def test_without_the_baseline_there_are_no_speedups() -> None:
    rows = [row for row in small_rows() if row.controller == "tree"]
    tree = summarise(rows, [], "plain", ["tree"])["tree"]
    assert tree.tokens_per_second == pytest.approx(4.0)
    assert tree.speedup is None
    assert tree.speedup_ci95 is None
    assert tree.by_category["chat"].speedup is None


def test_controllers_stand_in_the_order_asked_for_and_the_rows_order_changes_nothing() -> None:
    forward = summarise(small_rows(), [], "plain", ["tree", "plain", "absent"])
    assert list(forward) == ["tree", "plain", "absent"]
    assert forward["absent"].prompts == 0
    assert summarise(small_rows()[::-1], [], "plain", ["tree", "plain", "absent"]) == forward


def test_two_rows_for_the_same_repeat_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"one row a repeat.*'plain' on prompt 'a'.*id of its own"):
        summarise([make_row("plain", "a", 1.0), make_row("plain", "a", 2.0)], [], "plain", [])


def test_shares_sum_to_one_even_if_the_clocks_disagree() -> None:
    row = make_row("tree", "a", 1.0, seconds_by_part={"draft": 0.6, "verify": 0.5})
    shares = summarise([row], [], "plain", [])["tree"].shares
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(0 <= share <= 1 for share in shares.values())


def test_a_runner_that_cannot_time_its_stages_has_no_engine_share() -> None:
    reference = summarise([make_row("transformers", "a", 1.0)], [], "plain", [])["transformers"]
    assert reference.engine_share is None
    assert reference.shares["other"] == 1.0


def _synthetic(prompts: int, seed: int, spread: float = 0.25) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, and seconds of a controller and of the baseline; log-normal speed-up with median 1.5 a prompt."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, 257, prompts).astype(float)
    baseline = tokens * 0.03 * rng.lognormal(0, 0.3, prompts)
    return tokens, baseline / rng.lognormal(np.log(1.5), spread, prompts), baseline


def _interval(tokens: np.ndarray, a: np.ndarray, b: np.ndarray, **options: int) -> tuple[float, float, float]:
    ratio, interval = paired_ratio(tokens, a, tokens, b, **options)
    assert interval is not None
    return ratio, interval[0], interval[1]


def test_the_interval_holds_the_ratio_and_shrinks_with_more_prompts() -> None:
    widths = []
    for prompts in (10, 40, 160):
        ratio, low, high = _interval(*_synthetic(prompts, seed=3))
        assert low < ratio < high
        widths.append(high - low)
    assert widths[0] > 1.4 * widths[1] > 1.4**2 * widths[2]


def test_the_interval_is_the_same_for_the_same_seed_only() -> None:
    data = _synthetic(30, seed=4)
    assert _interval(*data, seed=1) == _interval(*data, seed=1)
    assert _interval(*data, seed=1) != _interval(*data, seed=2)


def test_what_slows_both_sides_of_a_prompt_does_not_widen_the_interval() -> None:
    rng = np.random.default_rng(5)
    tokens = np.full(40, 100.0)
    hardness = rng.lognormal(0, 1.0, 40)
    b = 3.0 * hardness
    a = b / 1.5 * rng.lognormal(0, 0.02, 40)
    _, low, high = _interval(tokens, a, b)
    _, unpaired_low, unpaired_high = _interval(tokens, a, rng.permutation(b))
    assert low < 1.5 < high
    assert high - low < 0.06
    assert unpaired_high - unpaired_low > 10 * (high - low), "the noise is too small to show anything"


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    truth = 1.5 * np.exp(-(0.25**2) / 2)  # total over total: E[b] / E[a] = 1 / E[1 / speed-up]
    trials = 200
    covered = 0
    for trial in range(trials):
        _, low, high = _interval(*_synthetic(40, seed=1000 + trial), seed=trial, resamples=499)
        covered += low <= truth <= high
    assert 0.88 <= covered / trials <= 0.99


def test_one_prompt_has_a_ratio_and_no_interval() -> None:
    assert paired_ratio([30], [2.0], [30], [3.0]) == (1.5, None)


def test_prompts_that_are_all_alike_give_an_interval_without_width() -> None:
    ratio, low, high = _interval(np.full(5, 10.0), np.full(5, 1.0), np.full(5, 2.0))
    assert ratio == low == high == 2.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: paired_ratio([], [], [], []),
        lambda: paired_ratio([1], [1.0, 2.0], [1], [1.0]),
        lambda: paired_ratio([1], [0.0], [1], [1.0]),
        lambda: paired_ratio([1], [float("nan")], [1], [1.0]),
    ],
)
def test_data_that_cannot_be_paired_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ParameterError, match=r"Expected .*, came"):
        call()

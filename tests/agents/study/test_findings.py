"""Ratios of the study, and their intervals over prompts and over seeds."""

from __future__ import annotations

import dataclasses

import pytest
from scipy.stats import t as student

from specgym.agents.study.findings import over_seeds, paired
from specgym.controllers.evaluation.results.schema import PromptRow

ROW = PromptRow("", "", "code", 0, 8, 64, 1.0, 10, 0, 0)


def rows(seconds: list[float]) -> list[PromptRow]:
    return [dataclasses.replace(ROW, prompt_id=f"p/{index}", seconds=time) for index, time in enumerate(seconds)]


class TestPaired:
    def test_throughput_is_total_over_texts_and_a_geometric_mean_over_cells(self) -> None:
        base = {("a", 0.0): rows([2.0, 4.0]), ("b", 0.0): rows([9.0, 9.0])}
        ours = {("a", 0.0): rows([1.0, 2.0]), ("b", 0.0): rows([1.0, 1.0])}
        assert paired(ours, base)["ratio"] == pytest.approx((2 * 9) ** 0.5)

    def test_a_difference_that_all_prompts_share_has_a_narrow_interval(self) -> None:
        base = {("a", 0.0): rows([1.0, 2.0, 3.0, 5.0])}
        result = paired({("a", 0.0): rows([0.5, 1.0, 1.5, 2.5])}, base)
        assert result["interval"] == pytest.approx([2.0, 2.0])

    def test_a_difference_that_prompts_do_not_share_has_a_wide_interval(self) -> None:
        base = {("a", 0.0): rows([1.0] * 12)}
        result = paired({("a", 0.0): rows([0.5, 2.0] * 6)}, base)
        low, high = result["interval"]
        assert result["ratio"] == pytest.approx(0.8)
        assert low < 0.75
        assert high > 0.85

    def test_cells_may_have_different_prompts(self) -> None:
        others = [dataclasses.replace(row, prompt_id=f"other/{row.prompt_id}") for row in rows([4.0, 6.0])]
        base = {("a", 0.0): rows([1.0, 2.0]), ("a", 1.0): others}
        ours = {cell: [dataclasses.replace(row, seconds=row.seconds / 2) for row in base[cell]] for cell in base}
        result = paired(ours, base)
        assert result["ratio"] == pytest.approx(2)
        assert result["interval"] == pytest.approx([2, 2]), "a resample without any prompt of a cell leaves it out"

    def test_one_prompt_has_no_interval(self) -> None:
        result = paired({("a", 0.0): rows([1.0])}, {("a", 0.0): rows([3.0])})
        assert result == {"ratio": pytest.approx(3.0), "interval": None}


class TestSeeds:
    def test_the_interval_is_students(self) -> None:
        result = over_seeds([1.0, 1.2, 1.4])
        half = student.ppf(0.975, 2) * 0.2 / 3**0.5
        assert result["mean"] == pytest.approx(1.2)
        assert result["interval"] == pytest.approx([1.2 - half, 1.2 + half])

    def test_one_seed_has_no_interval(self) -> None:
        assert over_seeds([1.3]) == {"mean": 1.3, "interval": None, "by_seed": [1.3]}

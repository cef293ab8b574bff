"""Averages of past rounds forget, and a gate closes for longer each time that speculation does not pay."""

from __future__ import annotations

import pytest

from specgym.controllers.rules.throughput import Gate, Throughput, machine_costs
from specgym.env.tree.observation import PastRound
from tests.support.made_rounds import after


class TestAccounts:
    def test_a_window_that_paid_makes_breaks_short_again(self) -> None:
        gate = Gate(window=4, probe=2, rest=4, longest=32)
        for _ in range(4):
            gate.add(1, 2)
        assert (gate.break_left, gate.next_break) == (4, 8)
        for _ in range(2):
            gate.add(2, 1)
        assert gate.next_break == 8, "a probe is too little to go by"
        for _ in range(2):
            gate.add(2, 1)
        assert gate.next_break == 4

    def test_throughput_forgets(self) -> None:
        recent = Throughput(window=10)
        for _ in range(60):
            recent.add(3, 1)
        assert recent.rate == pytest.approx(3, rel=0.01)
        assert recent.profit(1) == pytest.approx(2, rel=0.02)

    def test_a_rounds_time_is_its_forwards(self) -> None:
        costs = machine_costs(after(0, 0, level_cost=0.2, row_cost=0.05))
        assert costs.steps(PastRound(10, 4, 1), "both") == pytest.approx(1 + 0.8 + 0.5)
        assert costs.steps(PastRound(10, 4, 1), "lookup") == pytest.approx(1 + 0.5)

"""A guard leaves a controller alone while speculation pays, and pauses it while it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from specgym.controllers.controller import Controller
from specgym.controllers.registry import make_controller
from specgym.controllers.rules.guard import GuardedController
from specgym.controllers.rules.phases import PHASE_2, StaticController
from specgym.env.common.errors import UnknownNameError
from specgym.env.latency.families import CommonCosts, compute_bound
from specgym.env.tree.parameters import PLAIN
from tests.support.made_rounds import CHEAP, EXPENSIVE, FIRST, after, play
from tests.support.replayed import replayed_seconds
from tests.support.tiny_models import chain


class TestGuard:
    def guarded(self, specification: str = "") -> Controller:
        return make_controller("dynamic_depth+guarded" + specification)

    def test_what_pays_is_left_alone(self) -> None:
        assert set(play(self.guarded(), 200, accepted=3, **CHEAP)) == {PHASE_2}

    def test_what_does_not_pay_is_stopped_after_a_window_and_probed_with_growing_breaks(self) -> None:
        chosen = play(self.guarded(":window=8:probe=2:rest=4:longest=16"), 90, **EXPENSIVE)
        runs = "".join("x" if choice.speculates else "." for choice in chosen)
        assert runs.startswith("x" * 8 + "." * 4 + "xx" + "." * 8 + "xx" + "." * 16 + "xx" + "." * 16 + "xx")

    def test_it_comes_back_when_speculation_pays_again_and_breaks_are_short_again(self) -> None:
        guard = self.guarded(":window=4:probe=2:rest=4:longest=64")
        play(guard, 60, **EXPENSIVE)
        assert all(choice.speculates for choice in play(guard, 100, accepted=4, **CHEAP)[-30:])
        runs = "".join("x" if choice.speculates else "." for choice in play(guard, 12, **EXPENSIVE))
        assert "x...." in runs
        assert "....." not in runs

    def test_a_break_goes_on_with_the_next_request(self) -> None:
        guard = self.guarded(":window=4:rest=64")
        play(guard, 10, **EXPENSIVE)
        guard.reset()
        assert guard.act(FIRST) == PLAIN

    def test_prompt_lookup_pays_for_no_draft_levels(self) -> None:
        shape = {"level_cost": 0.5, "row_cost": 0.01}
        model = play(make_controller("dynamic_depth+guarded"), 60, accepted=1, **shape)
        lookup = play(make_controller("dynamic_depth:source=lookup+guarded"), 60, accepted=1, **shape)
        assert PLAIN in model
        assert PLAIN not in lookup

    def test_the_draft_is_not_observed_during_a_break(self) -> None:
        class Watcher(StaticController):
            observes_draft = True

        guard = GuardedController(Watcher(chain(3)), window=4, probe=2, rest=4)
        assert guard.observes_draft
        seen = []
        for _ in range(12):
            guard.act(after(0, 3, **EXPENSIVE))
            seen.append(guard.observes_draft)
        assert seen == [True] * 4 + [False] * 3 + [True] * 3 + [False] * 2

    def test_options_of_both_are_read_and_wrong_ones_refused(self) -> None:
        guard = make_controller("fixed_tree:branch=3:depth=2+guarded:window=5")
        assert guard.act(FIRST).max_branch == 3
        with pytest.raises(UnknownNameError, match=r"Unknown option of guarded 'windows'. Did you mean window\?"):
            make_controller("history+guarded:windows=5")
        with pytest.raises(UnknownNameError, match="Unknown controller 'hist'"):
            make_controller("hist+guarded")
        with pytest.raises(UnknownNameError, match="Unknown controller 'guarded'"):
            make_controller("guarded")

    def test_a_guard_keeps_a_rule_from_losing_much(self, trace: Path) -> None:
        profile = compute_bound(CommonCosts(draft_ratio=0.5), fixed=0.0)
        plain, bold = replayed_seconds(trace, "autoregressive", profile), replayed_seconds(trace, "history", profile)
        guarded = replayed_seconds(trace, "history+guarded:window=4", profile)
        assert plain < guarded < plain + (bold - plain) / 3

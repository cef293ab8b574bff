"""The check of a profile predicts the rounds that were played, and the profile can be drawn."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from specgym.controllers.evaluation.checks.latency_check import FRAME, ProfileCheck, plot_profile
from specgym.controllers.registry import make_controller
from specgym.env.decoding.live import LiveDecoder
from specgym.env.latency.costs import Curve, RoundCosts, UnmeasuredError
from specgym.env.latency.families import bandwidth_bound
from specgym.env.latency.latency_profile import LatencyProfile, Point
from specgym.env.tree.parameters import PLAIN
from specgym.env.tree.rounds import Request, RoundOutcome
from specgym.env.tree.sampling import SamplingSettings
from tests.support.tiny_models import causal_draft, make_draft, make_prompt, tiny_target

CONTROLLERS = ("autoregressive", "fixed_tree:branch=2:depth=3", "history")
PROMPTS = [make_prompt(seed, 12) for seed in range(3)]
NOTHING = Curve("expanded nodes", (1, 64), ((0.0, 0.0),))
COUNTING = RoundCosts(
    contexts=(0,),
    plain=Curve("plain steps", (1,), ((1.0,),)),
    root=NOTHING,
    level=NOTHING,
    verify=Curve("verified rows", (1, 64), ((1.0, 64.0),)),
    root_row=0.0,
    overhead=0.0,
    lookup=0.0,
)
"""costs one second a verified row"""


@pytest.fixture
def decoder() -> LiveDecoder:
    target = tiny_target()
    return LiveDecoder(target, causal_draft(target))


def played(decoder: LiveDecoder, name: str, request: Request) -> list[RoundOutcome]:
    """The rounds of a controller after nine plain ones, until they have committed 30 tokens."""
    controller, rounds = make_controller(name), list[RoundOutcome]()
    controller.reset()
    decoder.start(request)
    for _ in range(9):
        decoder.round(PLAIN)
    while sum(len(outcome.tokens) for outcome in rounds) < 30:
        if controller.observes_draft:
            decoder.observe(draft=True)
        rounds.append(decoder.round(controller.act(decoder.observe(controller.observes_draft))))
    return rounds


class TestCheck:
    def test_every_round_of_every_text_is_predicted_from_its_own_rows(self, decoder: LiveDecoder) -> None:
        profile = LatencyProfile(COUNTING, dataclasses.replace(COUNTING, overhead=0.5))
        check = ProfileCheck(decoder, CONTROLLERS, PROMPTS, max_new_tokens=30, temperature=1.0, seed=4)
        assert check.left == 2 * len(CONTROLLERS) * len(PROMPTS)
        assert check.checks(profile) == ()
        check.play(4)
        assert check.left == 2 * len(CONTROLLERS) * len(PROMPTS) - 4
        check.play(100)
        assert check.left == 0
        checks = check.checks(profile)
        assert {(check.controller, check.greedy) for check in checks} == {
            (name, greedy) for name in CONTROLLERS for greedy in (True, False)
        }
        for check in checks:
            sampling = SamplingSettings() if check.greedy else SamplingSettings(1.0, seed=4)
            requests = [Request(prompt, 30 + FRAME, sampling) for prompt in PROMPTS]
            texts = [played(decoder, check.controller, request) for request in requests]
            assert check.texts == len(texts)
            assert check.rounds == sum(map(len, texts)), "without the prompt's reading and the plain rounds"
            rows = check.rounds + sum(outcome.drafted for text in texts for outcome in text)
            least, most = rows, rows + 0.5 * check.rounds * (not check.greedy)
            assert least <= check.predicted <= most
            # Every text is predicted to take seconds, and takes milliseconds.
            assert 0 < check.measured < check.predicted
            assert check.error > 30
            assert check.steps_error < check.error / 5, "the machine's speed plays no part"
            if check.controller == "autoregressive":
                assert check.predicted == check.rounds == 30 * len(PROMPTS)
                assert check.predicted_steps == 1
            else:
                assert check.predicted_steps > 1.1, "a row costs as much as a plain step"

    def test_nodes_of_lookup_cost_time(self) -> None:
        target = tiny_target()
        decoder = LiveDecoder(target, make_draft("lookup", target))
        free, costly = (LatencyProfile(*[dataclasses.replace(COUNTING, lookup=cost)] * 2) for cost in (0.0, 1.0))
        check = ProfileCheck(decoder, ("fixed_tree",), PROMPTS, max_new_tokens=30, temperature=1.0)
        check.play(check.left)
        for without, with_lookup in zip(check.checks(free), check.checks(costly), strict=True):
            assert with_lookup.predicted > without.predicted

    def test_a_round_that_the_profile_does_not_know_is_an_error(self, decoder: LiveDecoder) -> None:
        profile = LatencyProfile(COUNTING, COUNTING)
        check = ProfileCheck(decoder, ("fixed_tree:branch=3:depth=5",), PROMPTS, max_new_tokens=30, temperature=1)
        check.play(1)
        with pytest.raises(UnmeasuredError, match="1 to 64 verified rows"):
            check.checks(profile)


class TestPlot:
    def test_measured_profiles_and_families_can_be_drawn(self, tmp_path: Path) -> None:
        origin = {"target": "a", "draft": "b", "dtype": "float32", "machine": {"device": "cpu", "cpu": "a CPU"}}
        points = (Point(True, "verify", 0, 4, 0.004, 3), Point(False, "root", 0, 1, 0.001, 1))
        plot_profile(LatencyProfile(COUNTING, COUNTING, origin, points), tmp_path / "measured.png")
        plot_profile(bandwidth_bound(), tmp_path / "family.png")
        for name in ("measured", "family"):
            assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")

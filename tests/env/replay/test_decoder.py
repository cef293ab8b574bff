"""Replay says what live decoding does: the same rounds, the same text, the same observations, or an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specgym.controllers.registry import controller_names, make_controller
from specgym.controllers.rules.phases import PHASE_1, fixed_tree
from specgym.controllers.run import steer
from specgym.env.common.errors import UnrecordedError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts import Draft
from specgym.env.latency.families import CommonCosts, overhead_bound
from specgym.env.models.target import TargetModel
from specgym.env.replay.decoder import ReplayDecoder
from specgym.env.replay.recording.recorder import Recorder, SupersetRule
from specgym.env.replay.traces.records import TraceHeader, TraceText
from specgym.env.tree.observation import Observation
from specgym.env.tree.parameters import PLAIN, SOURCES, TreeParameters
from specgym.env.tree.rounds import Decoder, FinishReason, Request, RoundOutcome, RoundSeconds
from specgym.env.tree.sampling import SamplingSettings
from tests.env.replay.test_recording import CALIBRATOR
from tests.support.tiny_models import STOPS, VOCABULARY, causal_draft, feature_draft, generate, make_prompt, tiny_target

RULE = SupersetRule(floor=0.05, fixed=(fixed_tree().parameters, PHASE_1))
PROFILE = overhead_bound(CommonCosts(), 0.01)
LENGTH = 40
SAMPLINGS = (SamplingSettings(), SamplingSettings(1.0, seed=3))


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A pair and a trace of it."""

    live: LiveDecoder
    replay: ReplayDecoder
    requests: list[Request]


def record(target: TargetModel, draft: Draft, prompts: int = 10) -> Recorded:
    requests = [Request(make_prompt(seed), LENGTH, sampling) for seed in range(prompts) for sampling in SAMPLINGS]
    recorder = Recorder(target, draft, RULE)
    texts = []
    for number, request in enumerate(requests):
        tokens = (*request.prompt, *generate(target, draft, request).tokens)
        table = recorder.record(tokens, len(request.prompt), request.sampling)
        texts.append(
            TraceText(
                f"tiny/{number}",
                "code",
                "test",
                request.sampling,
                len(request.prompt),
                LENGTH,
                tokens,
                lambda table=table: table,  # type: ignore[misc]
            )
        )
    header = TraceHeader(
        target="",
        draft="",
        draft_kind=draft.kind,
        names=("", ""),
        vocabulary=VOCABULARY,
        context_limits=(target.context_limit, draft.context_limit),
        end_tokens=tuple(sorted(target.end_tokens)),
        rule={"columns": RULE.columns},
        calibrator=None if draft.calibrator is None else draft.calibrator.record(),
        dtype="float64",
    )
    live = LiveDecoder(target, draft, PROFILE.costs(True))
    return Recorded(live, ReplayDecoder(texts, header, PROFILE), requests)


@pytest.fixture(scope="module", params=["causal", "feature"])
def recorded(request: pytest.FixtureRequest) -> Recorded:
    target = tiny_target(0, end_tokens=(4, 9))
    draft = causal_draft(target) if request.param == "causal" else feature_draft(target, 1)
    draft.calibrator = CALIBRATOR
    return record(target, draft)


def timeless(outcome: RoundOutcome) -> RoundOutcome:
    return dataclasses.replace(outcome, seconds=RoundSeconds())


def played(decoder: Decoder, controller: str, request: Request) -> Iterator[tuple[RoundOutcome, Observation]]:
    if isinstance(decoder, LiveDecoder):  # it does not know which machine is replayed
        decoder.costs = PROFILE.costs(request.sampling.greedy)
    for step in steer(decoder, make_controller(controller), request):
        yield timeless(step.outcome), decoder.observe()


class TestExactness:
    @pytest.mark.parametrize("controller", controller_names())
    def test_every_controllers_rounds_are_those_of_live_decoding(self, recorded: Recorded, controller: str) -> None:
        for request in recorded.requests:
            live = list(played(recorded.live, controller, request))
            assert list(played(recorded.replay, controller, request)) == live

    @pytest.mark.parametrize("source", SOURCES)
    def test_so_they_are_with_other_sources(self, recorded: Recorded, source: str) -> None:
        accepted = 0
        for request in recorded.requests:
            live = list(played(recorded.live, f"history:source={source}", request))
            assert list(played(recorded.replay, f"history:source={source}", request)) == live
            accepted += sum(outcome.accepted_lookup for outcome, _ in live)
        assert bool(accepted) == (source != "model")

    @settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
    @given(data=st.data())
    def test_any_mixture_of_choices_and_observations_is_replayed(self, recorded: Recorded, data: st.DataObject) -> None:
        live, replay = recorded.live, recorded.replay
        request = data.draw(st.sampled_from(recorded.requests), "request")
        shapes = st.builds(
            TreeParameters,
            base_depth=st.integers(1, 5),
            max_depth=st.integers(5, 10),
            early_stop=st.sampled_from([0.05, 0.1, 0.3]),
            deep_expand=st.sampled_from([0.2, 0.7]),
            source=st.sampled_from(SOURCES),
            calibrated=st.booleans(),
            **STOPS,
        )
        live.costs = PROFILE.costs(request.sampling.greedy)
        assert timeless(replay.start(request)) == timeless(live.start(request))
        while live.under_way:
            looks = data.draw(st.booleans(), "observes the draft")
            assert replay.observe(looks) == live.observe(looks)
            choice = data.draw(shapes | st.just(PLAIN) | st.sampled_from(RULE.fixed), "choice")
            assert timeless(replay.round(choice)) == timeless(live.round(choice))
            for name in ("token", "parent", "log_prob", "from_lookup"):
                assert getattr(replay.tree, name).tolist() == getattr(live.tree, name).tolist()
            assert replay.accepted.tolist() == live.accepted.tolist()
        assert replay.tokens == live.tokens

    def test_a_shorter_request_ends_sooner(self, recorded: Recorded) -> None:
        request = next(each for each in recorded.requests if len(generate_plainly(recorded, each)) == LENGTH)
        short = dataclasses.replace(request, max_new_tokens=11)
        live = list(played(recorded.live, "history", short))
        assert list(played(recorded.replay, "history", short)) == live
        assert live[-1][0].finished is FinishReason.TOKEN_LIMIT


def play_all(recorded: Recorded, parameters: TreeParameters) -> None:
    for request in recorded.requests:
        recorded.replay.start(request)
        while recorded.replay.under_way:
            recorded.replay.round(parameters)


def generate_plainly(recorded: Recorded, request: Request) -> list[int]:
    return generate(recorded.live.target, recorded.live.draft, request).tokens


class TestTime:
    def test_rounds_take_what_the_profile_says(self, recorded: Recorded) -> None:
        replay, request = recorded.replay, recorded.requests[1]
        replay.start(request)
        while replay.under_way:
            position = len(replay.tokens) - 1
            outcome = replay.round(PHASE_1)
            expected = PROFILE.costs(False).round_seconds(
                position, outcome.level_rows, 1 + outcome.drafted, outcome.lookup_nodes
            )
            assert outcome.seconds.total == expected > 0

    def test_observations_tell_the_machines_costs(self, recorded: Recorded) -> None:
        request = recorded.requests[0]
        recorded.live.costs = PROFILE.costs(request.sampling.greedy)
        recorded.replay.start(request)
        recorded.live.start(request)
        seen = recorded.replay.observe()
        assert seen == recorded.live.observe()
        assert seen.row_cost > 0 < seen.level_cost


class TestRefusals:
    def test_a_text_that_was_not_recorded(self, recorded: Recorded) -> None:
        with pytest.raises(UnrecordedError, match=r"no text for this prompt of 8 tokens with .*seed=77"):
            recorded.replay.start(Request(make_prompt(0), LENGTH, SamplingSettings(1.0, seed=77)))

    @pytest.mark.parametrize("more", [{"max_new_tokens": LENGTH + 1}, {"ignore_end": True}])
    def test_more_of_a_text_than_was_recorded(self, recorded: Recorded, more: dict[str, int]) -> None:
        request = next(each for each in recorded.requests if len(generate_plainly(recorded, each)) == LENGTH)
        with pytest.raises(UnrecordedError, match="holds 40 tokens of this text, up to its end; got max_new_tokens=4"):
            recorded.replay.start(dataclasses.replace(request, **more))  # type: ignore[arg-type]

    def test_logits_processors(self, recorded: Recorded) -> None:
        request = dataclasses.replace(Request(make_prompt(0), LENGTH), processors=(lambda input_ids, scores: scores,))
        with pytest.raises(UnrecordedError, match="without logits processors"):
            recorded.replay.start(request)

    def test_a_tree_that_was_not_recorded(self, recorded: Recorded) -> None:
        wide = dataclasses.replace(PHASE_1, base_depth=8, max_depth=8, frontier_width=60)
        with pytest.raises(UnrecordedError, match="Ask for a tree within the recorded ones"):
            play_all(recorded, wide)

    def test_a_round_without_a_text(self, recorded: Recorded) -> None:
        fresh = ReplayDecoder([], recorded.replay.header, PROFILE)
        with pytest.raises(RuntimeError, match="No text is under way"):
            fresh.round(PLAIN)

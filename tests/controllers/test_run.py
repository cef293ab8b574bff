"""The loop adds up its rounds, and a controller acts once a round."""

from __future__ import annotations

import numpy as np
import pytest

from specgym.controllers.controller import Controller
from specgym.controllers.registry import controller_names, make_controller
from specgym.controllers.rules.phases import PHASE_2, HistoryController, StaticController
from specgym.controllers.run import run, steer
from specgym.env.common.errors import LimitError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts import Draft
from specgym.env.models.target import TargetModel
from specgym.env.tree.observation import Observation
from specgym.env.tree.parameters import PLAIN, TreeParameters
from specgym.env.tree.rounds import FinishReason, Request
from tests.support.tiny_models import causal_draft, generate, make_prompt, tiny_target


@pytest.fixture(scope="module")
def target() -> TargetModel:
    return tiny_target()


@pytest.fixture(scope="module")
def draft(target: TargetModel) -> Draft:
    return causal_draft(target)


class TestRun:
    @pytest.mark.parametrize("name", controller_names())
    def test_a_generation_is_the_sum_of_its_rounds(self, target: TargetModel, draft: Draft, name: str) -> None:
        request = Request(make_prompt(1), 40)
        steps = list(steer(LiveDecoder(target, draft), make_controller(name), request))
        generation = run(LiveDecoder(target, draft), make_controller(name), request)
        outcomes = [step.outcome for step in steps]
        assert generation.tokens == [token for outcome in outcomes for token in outcome.tokens]
        assert generation.rounds == len(outcomes)
        assert generation.drafted == sum(outcome.drafted for outcome in outcomes)
        assert generation.accepted == sum(outcome.accepted for outcome in outcomes)
        assert generation.finished is outcomes[-1].finished is FinishReason.TOKEN_LIMIT
        assert all(outcome.finished is None for outcome in outcomes[:-1])
        assert len(generation.tokens) == generation.rounds + generation.accepted == 40
        assert (generation.drafted > 0) == (name != "autoregressive")

    def test_where_the_text_ends_in_a_path_the_bonus_token_is_missing(self, target: TargetModel) -> None:
        echo, request = causal_draft(target, 0.0), Request(make_prompt(1), 40)
        text = generate(target, echo, request).tokens
        token = next(token for index, token in enumerate(text) if index > 2 and token not in text[:index])
        ending = TargetModel(target.model, frozenset({token}))
        generation = generate(ending, echo, request, "fixed_tree:branch=1:depth=20")
        assert generation.finished is FinishReason.END_OF_SEQUENCE
        assert len(generation.tokens) == generation.rounds + generation.accepted - 1 == text.index(token) + 1

    def test_the_time_of_the_stages_is_part_of_the_whole(self, target: TargetModel, draft: Draft) -> None:
        generation = generate(target, draft, Request(make_prompt(1), 20), "history")
        parts = generation.seconds_by_part
        assert all(seconds > 0 for seconds in parts.values())
        assert parts["draft_forward"] <= parts["draft"]
        assert parts["verify_forward"] <= parts["verify"]
        stages = ("draft", "verify", "commit", "controller")
        assert sum(parts[stage] for stage in stages) <= generation.seconds

    def test_a_controller_is_reset_once_and_then_acts_once_a_round(self, target: TargetModel, draft: Draft) -> None:
        class Diary(StaticController):
            def __init__(self) -> None:
                super().__init__(PHASE_2)
                self.entries: list[object] = []

            def reset(self) -> None:
                self.entries.append("reset")

            def act(self, observation: Observation) -> TreeParameters:
                self.entries.append(observation.generated)
                return super().act(observation)

        diary = Diary()
        steps = list(steer(LiveDecoder(target, draft), diary, Request(make_prompt(1), 30)))
        generated = np.cumsum([len(step.outcome.tokens) for step in steps])
        assert diary.entries == ["reset", *generated[:-1].tolist()]

    def test_a_controller_may_observe_the_drafts_probabilities_for_one_forward_a_round(
        self, target: TargetModel, draft: Draft
    ) -> None:
        class Sceptic(StaticController):
            """Speculates only where the draft is sure."""

            observes_draft = True

            def act(self, observation: Observation) -> TreeParameters:
                self.seen.append(observation.root_log_probs)
                return self.parameters if np.exp(observation.root_log_probs[0]) > 0.4 else PLAIN

        sceptic, request = Sceptic(PHASE_2), Request(make_prompt(1), 40)
        sceptic.seen = []
        before = draft.forward_seconds
        steps = list(steer(LiveDecoder(target, draft), sceptic, request))
        outcomes = [step.outcome for step in steps[1:]]
        assert [token for step in steps for token in step.outcome.tokens] == generate(target, draft, request).tokens
        assert len(sceptic.seen) == len(outcomes)
        assert all(len(log_probs) == 4 for log_probs in sceptic.seen)
        assert {outcome.drafted > 0 for outcome in outcomes} == {False, True}, "the test would be vacuous"
        assert all(len(outcome.level_rows) == max(outcome.depth, 1) for outcome in outcomes)
        spent = sum(outcome.seconds.draft_forward for outcome in outcomes)
        assert spent == pytest.approx(draft.forward_seconds - before)

    @pytest.mark.parametrize("name", controller_names())
    def test_rules_do_not_look_at_the_draft(self, name: str) -> None:
        assert isinstance(make_controller(name), Controller)
        assert make_controller(name).observes_draft is False

    def test_a_request_that_does_not_fit_is_refused(self, target: TargetModel, draft: Draft) -> None:
        with pytest.raises(LimitError, match="Shorten the prompt"):
            run(LiveDecoder(target, draft), make_controller("history"), Request((1,) * 500))

    def test_history_adapts_while_it_runs_and_changes_no_token(self, target: TargetModel) -> None:
        echo, request = causal_draft(target, 0.0), Request(make_prompt(1), 110)
        controller = HistoryController()
        generation = generate(target, echo, request, controller)
        assert generation.tokens == generate(target, echo, request).tokens
        assert controller.parameters.base_depth > PHASE_2.base_depth

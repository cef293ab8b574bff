"""Rule-based controllers, the registry that finds them and the loop that they steer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from specgym.controllers.controller import Controller
from specgym.controllers.registry import controller_names, make_controller, register
from specgym.controllers.rules.phases import PHASE_2, HistoryController, StaticController, fixed_tree
from specgym.controllers.run import run, steer
from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import LimitError, ParameterError, UnknownNameError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts import Draft
from specgym.env.models.target import TargetModel
from specgym.env.tree.growth import Candidates, grow_tree
from specgym.env.tree.observation import Observation
from specgym.env.tree.parameters import PLAIN, SOURCES, TreeParameters
from specgym.env.tree.rounds import FinishReason, Request
from specgym.env.tree.tree import TokenTree
from tests.support.tiny_models import causal_draft, generate, make_prompt, tiny_target


def after(accepted: int, depth: int) -> Observation:
    """What is seen after a round in which `accepted` levels of a tree of `depth` were right."""
    return Observation(
        position=9, generated=4, remaining=40, last_drafted=depth, last_depth=depth, last_accepted=accepted
    )


NOTHING_YET = after(0, 0)


def even_draft(tree: TokenTree, nodes: IntArray, k: int) -> Candidates:
    """Eight candidates, all equally likely, after every node."""
    tokens, log_probs = np.tile(np.arange(k), (len(nodes), 1)), np.full((len(nodes), k), np.log(1 / 8))
    return Candidates(tokens, log_probs, np.full(len(nodes), 1 / 8))


class TestStatic:
    def test_plain_decoding_never_drafts(self) -> None:
        assert make_controller("autoregressive").act(NOTHING_YET) == PLAIN

    @pytest.mark.parametrize(
        ("branch", "depth", "nodes"), [(1, 5, 5), (2, 4, 2 + 4 + 8 + 16), (3, 3, 3 + 9 + 27), (4, 1, 4)]
    )
    def test_a_fixed_tree_is_complete_however_unsure_the_draft(self, branch: int, depth: int, nodes: int) -> None:
        parameters = fixed_tree(branch, depth).act(NOTHING_YET)
        tree = grow_tree(0, parameters, even_draft)
        assert len(tree.likeliest(parameters.node_budget)) == len(tree) == 1 + nodes
        assert np.bincount(tree.depth).tolist() == [branch**level for level in range(depth + 1)]

    def test_a_fixed_tree_obeys_its_node_budget(self) -> None:
        parameters = fixed_tree(4, 4, node_budget=20).act(NOTHING_YET)
        assert len(grow_tree(0, parameters, even_draft).likeliest(parameters.node_budget)) == 21

    def test_phase_1_is_as_deep_everywhere_and_phase_2_goes_by_how_likely_a_branch_is(self) -> None:
        def leaves(name: str, odds: list[float]) -> set[int]:
            def draft(tree: TokenTree, nodes: IntArray, k: int) -> Candidates:
                tokens, log_probs = np.tile(np.arange(k), (len(nodes), 1)), np.log(np.tile(odds, (len(nodes), 1)))
                return Candidates(tokens, log_probs, np.full(len(nodes), odds[0]))

            tree = grow_tree(0, make_controller(name).act(NOTHING_YET), draft)
            return set(tree.depth[np.setdiff1d(np.arange(len(tree)), tree.parent)].tolist())

        unsure, sure = [0.75, 0.2, 0.03, 0.02], [0.95, 0.03, 0.01, 0.01]
        assert leaves("confidence", unsure) == leaves("confidence", sure) == {4}
        assert leaves("dynamic_depth", unsure) == {2, 3, 4}  # 0.2 * 0.2 is under 0.1
        assert leaves("dynamic_depth", sure) == {7}  # 0.95^6 is over 0.7, 0.95^7 is not

    @pytest.mark.parametrize("source", SOURCES)
    @pytest.mark.parametrize("name", ["autoregressive", "fixed_tree", "confidence", "dynamic_depth", "history"])
    def test_every_rule_takes_its_nodes_from_where_it_is_told(self, name: str, source: str) -> None:
        told = make_controller(f"{name}:source={source}").act(NOTHING_YET)
        assert told == dataclasses.replace(make_controller(name).act(NOTHING_YET), source=source)  # type: ignore[arg-type]

    def test_a_static_controller_ignores_what_it_sees(self) -> None:
        controller = StaticController(PHASE_2)
        assert {controller.act(after(accepted, 4)) for accepted in range(5)} == {PHASE_2}


class TestHistoryByRound:
    def feed(self, controller: HistoryController, *rounds: tuple[int, int]) -> TreeParameters:
        for accepted, depth in rounds:
            controller.act(after(accepted, depth))
        return controller.parameters

    def test_it_starts_as_phase_2_and_waits_for_five_observations(self) -> None:
        controller = HistoryController()
        assert controller.act(NOTHING_YET) == PHASE_2
        assert self.feed(controller, *[(4, 4)] * 4) == PHASE_2
        assert self.feed(controller, (4, 4)) != PHASE_2

    def test_it_gets_bolder_over_eight_tenths_and_more_careful_under_six(self) -> None:
        bolder = self.feed(HistoryController(), *[(9, 10)] * 5)
        assert (bolder.base_depth, bolder.high_confidence) == (5, 0.75)
        careful = self.feed(HistoryController(), *[(1, 2)] * 5)
        assert (careful.base_depth, careful.high_confidence) == (3, 0.85)
        for parameters in (bolder, careful):
            assert dataclasses.replace(parameters, base_depth=4, high_confidence=0.8) == PHASE_2

    @pytest.mark.parametrize("accepted", [6, 7, 8])
    def test_within_the_band_nothing_changes_the_borders_included(self, accepted: int) -> None:
        assert self.feed(HistoryController(), *[(accepted, 10)] * 15) == PHASE_2

    def test_it_goes_by_the_mean_of_the_rounds(self) -> None:
        assert self.feed(HistoryController(), (0, 4), *[(4, 4)] * 3, (2, 4)) == PHASE_2  # 0.7 on average
        assert self.feed(HistoryController(), (0, 4), *[(4, 4)] * 2, (2, 4), (1, 4)) != PHASE_2

    def test_rounds_without_a_tree_do_not_count(self) -> None:
        assert self.feed(HistoryController(), *[(4, 4), (0, 0)] * 4) == PHASE_2

    def test_it_stays_within_its_bounds_and_on_its_steps(self) -> None:
        controller = HistoryController()
        seen = [self.feed(controller, (8, 8)) for _ in range(30)]
        seen += [self.feed(controller, (0, 8)) for _ in range(40)]
        assert {parameters.base_depth for parameters in seen} == set(range(2, 11))
        assert {parameters.high_confidence for parameters in seen} == {round(0.5 + step / 20, 6) for step in range(10)}
        assert seen[29].base_depth == 10
        assert seen[-1].base_depth == 2
        assert (seen[29].high_confidence, seen[-1].high_confidence) == (0.5, 0.95)

    def test_the_max_depth_follows_the_base_depth_and_never_falls_under_phase_2s(self) -> None:
        controller = HistoryController()
        for rounds in ([(8, 8)] * 15, [(0, 8)] * 25):
            parameters = self.feed(controller, *rounds)
            assert parameters.max_depth == max(PHASE_2.max_depth, parameters.base_depth)
        controller = HistoryController()
        assert self.feed(controller, *[(8, 8)] * 15).max_depth == 10

    def test_what_lies_more_than_ten_rounds_back_is_forgotten(self) -> None:
        spoilt, clean = HistoryController(), HistoryController()
        self.feed(spoilt, *[(0, 4)] * 4)
        for controller in (spoilt, clean):
            self.feed(controller, *[(7, 10)] * 10)
            controller.parameters = PHASE_2
            self.feed(controller, (7, 10))
        assert spoilt.parameters == clean.parameters == PHASE_2
        remembering = HistoryController(window=15)
        self.feed(remembering, *[(0, 4)] * 4, *[(7, 10)] * 10)
        remembering.parameters = PHASE_2
        assert self.feed(remembering, (7, 10)) != PHASE_2, "the test would be vacuous"

    def test_a_new_request_starts_anew(self) -> None:
        controller = HistoryController()
        self.feed(controller, *[(4, 4)] * 9)
        controller.reset()
        assert controller.act(NOTHING_YET) == PHASE_2
        assert self.feed(controller, *[(4, 4)] * 4) == PHASE_2

    def test_the_source_stays_as_it_is_told_however_the_rounds_go(self) -> None:
        controller = HistoryController(source="both")
        seen = [self.feed(controller, rounds) for rounds in [(8, 8)] * 9 + [(0, 8)] * 9]
        controller.reset()
        assert {parameters.source for parameters in [*seen, controller.act(NOTHING_YET)]} == {"both"}
        assert len(set(seen)) > 5, "the test would be vacuous"

    def test_its_settings_are_obeyed(self) -> None:
        eager = HistoryController(patience=1, depth_step=3, threshold_step=0.1)
        assert self.feed(eager, (4, 4)).base_depth == 7
        assert eager.parameters.high_confidence == 0.7
        assert self.feed(HistoryController(target=0.3), *[(1, 2)] * 5).base_depth == 5
        assert self.feed(HistoryController(band=0.3), *[(4, 4)] * 5) == PHASE_2


class TestHistoryByRequest:
    def request(self, controller: HistoryController, *rounds: tuple[int, int]) -> set[TreeParameters]:
        """Plays a request and returns the parameters it was played with."""
        controller.reset()
        return {controller.act(after(accepted, depth)) for accepted, depth in [(0, 0), *rounds]}

    def test_it_changes_only_between_requests_after_five_of_them(self) -> None:
        controller = HistoryController("request")
        for _ in range(5):
            assert self.request(controller, *[(4, 4)] * 20) == {PHASE_2}
        (bolder,) = self.request(controller, *[(0, 4)] * 20)
        assert (bolder.base_depth, bolder.high_confidence) == (5, 0.75)

    def test_it_remembers_across_requests(self) -> None:
        controller = HistoryController("request")
        for _ in range(8):
            self.request(controller, (4, 4))
        assert self.request(controller, (4, 4)) == {controller.parameters}
        assert controller.parameters.base_depth > 5

    def test_a_request_counts_by_all_its_tokens(self) -> None:
        controller = HistoryController("request", patience=1)
        self.request(controller, (8, 8), (0, 1), (0, 1))  # 8 of 10, though two rounds of three failed
        (parameters,) = self.request(controller)
        assert parameters == PHASE_2
        self.request(controller, (1, 1), (1, 1), (0, 8))
        (parameters,) = self.request(controller)
        assert parameters.base_depth == 3

    def test_a_request_without_a_tree_does_not_count(self) -> None:
        controller = HistoryController("request", patience=1)
        self.request(controller)
        assert self.request(controller) == {PHASE_2}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"adjust": "weekly"}, r"adjust must be 'round' or 'request'; got 'weekly'"),
            ({"patience": 11}, r"patience must be within 1 and window; got 11 and 10"),
            ({"patience": 0}, r"got 0 and 10"),
            ({"window": 3}, r"got 5 and 3"),
        ],
    )
    def test_settings_at_odds_are_refused(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ParameterError, match=message):
            HistoryController(**options)  # type: ignore[arg-type]


class TestRegistry:
    @pytest.mark.parametrize("name", controller_names())
    def test_every_name_makes_a_controller_that_chooses(self, name: str) -> None:
        controller = make_controller(name)
        assert isinstance(controller, Controller)
        controller.reset()
        assert isinstance(controller.act(NOTHING_YET), TreeParameters)
        assert make_controller(name) is not controller

    def test_the_rules_are_all_there(self) -> None:
        assert {"autoregressive", "fixed_tree", "confidence", "dynamic_depth", "history"} <= set(controller_names())

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("hist", r"Unknown controller 'hist'. Did you mean history"),
            ("fixedtree:depth=2", r"Did you mean fixed_tree"),
            ("zzz", r"Known: adaedl, autoregressive, .*fixed_tree, .*history"),
            ("", r"Unknown controller ''"),
            ("fixed_tree:dept=2", r"Unknown option of fixed_tree 'dept'. Did you mean depth\?"),
            ("history:patients=2", r"Unknown option of history 'patients'. Did you mean patience\?"),
            ("dynamic_depth:earlystop=2", r"Did you mean early_stop\?"),
        ],
    )
    def test_an_unknown_name_or_option_is_answered_with_the_closest_ones(self, name: str, message: str) -> None:
        with pytest.raises(UnknownNameError, match=message):
            make_controller(name)

    def test_options_are_read_in_their_own_types(self) -> None:
        parameters = make_controller("dynamic_depth:max_depth=9:early_stop=0.25:node_budget=7").act(NOTHING_YET)
        assert parameters == dataclasses.replace(PHASE_2, max_depth=9, early_stop=0.25, node_budget=7)
        assert make_controller("fixed_tree:branch=3:depth=2").act(NOTHING_YET).max_depth == 2
        history = make_controller("history:adjust=request:patience=2:band=0.2")
        assert isinstance(history, HistoryController)
        assert (history.adjust, history.patience, history.band) == ("request", 2, 0.2)

    @pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False)])
    def test_a_switch_is_true_or_false_and_nothing_else(self, text: str, value: bool) -> None:
        assert make_controller(f"dynamic_depth:calibrated={text}").act(NOTHING_YET).calibrated is value
        for other in (text.upper(), text[0], str(int(value)), "", "yes"):
            with pytest.raises(ParameterError, match=f"^Option calibrated needs true or false; got '{other}'.$"):
                make_controller(f"dynamic_depth:calibrated={other}")

    @pytest.mark.parametrize(
        ("specification", "message"),
        [
            ("fixed_tree:depth=deep", r"Option depth needs a value of type int, such as 4; got 'deep'"),
            ("fixed_tree:depth=1.5", r"type int.*got '1.5'"),
            ("dynamic_depth:early_stop=", r"type float.*got ''"),
            ("fixed_tree:depth", r"Expected depth=VALUE in 'fixed_tree:depth'; got 'depth'"),
            ("fixed_tree:depth=-1", r"base_depth=-1"),
            ("fixed_tree:branch=0", r"min_branch=0"),
            ("confidence:base_depth=7", r"base_depth=7, max_depth=4"),
            ("confidence:early_stop=nan", r"early_stop=nan"),
            ("history:adjust=weekly", r"adjust must be"),
            ("history:target=nan", r"target and band must be within 0 and 1; got nan"),
            ("history:band=-1", r"target and band.*got 0.7 and -1.0"),
            ("history:depth_step=-1", r"depth_step must be 0 or more.*got -1"),
            ("history:threshold_step=nan", r"threshold_step within 0 and 1.*and nan"),
            ("history:source=draft", r"source to be one of model, lookup, both; got source=draft"),
            ("fixed_tree:source=", r"source to be one of model, lookup, both; got source="),
            ("dynamic_depth:source=Both", r"got source=Both"),
            ("history:patience=20", r"patience must be within 1 and window; got 20 and 10"),
        ],
    )
    def test_a_value_that_an_option_cannot_take_is_refused(self, specification: str, message: str) -> None:
        with pytest.raises(ParameterError, match=message):
            make_controller(specification)

    def test_a_taken_name_is_not_given_away(self) -> None:
        with pytest.raises(ParameterError, match=r"There is a controller 'history' already"):
            register("history", HistoryController)
        assert isinstance(make_controller("history"), HistoryController)


@pytest.fixture(scope="module")
def target() -> TargetModel:
    return tiny_target()


@pytest.fixture(scope="module")
def draft(target: TargetModel) -> Draft:
    return causal_draft(target)


class TestRun:
    @pytest.mark.parametrize("name", controller_names())
    def test_the_account_is_the_sum_of_the_rounds(self, target: TargetModel, draft: Draft, name: str) -> None:
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

    def test_a_controller_is_reset_once_and_then_asked_once_a_round(self, target: TargetModel, draft: Draft) -> None:
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

    def test_a_controller_sees_the_drafts_opinion_if_it_wants_to_and_pays_for_one_forward(
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

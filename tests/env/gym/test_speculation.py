"""The environment plays the rounds of its decoder, rewards tokens and time, and refuses wrong arguments early."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded

from specgym.controllers.controller import Controller
from specgym.controllers.registry import controller_names, make_controller
from specgym.controllers.run import steer
from specgym.env.common.errors import LimitError, NumericalError, ParameterError, UnknownNameError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts import LookupDraft
from specgym.env.gym.features import FEATURES, feature_table, feature_vector
from specgym.env.gym.grid import ParameterGrid
from specgym.env.gym.requests import Requests
from specgym.env.gym.speculation import SpeculationEnv
from specgym.env.models.target import TargetModel
from specgym.env.tree.parameters import PLAIN, SOURCES, TreeParameters
from specgym.env.tree.rounds import FinishReason, Request, measure_plain_step
from specgym.env.tree.sampling import SamplingSettings
from tests.support.tiny_models import causal_draft, generate, make_draft, make_prompt, tiny_target

REQUESTS = [Request(make_prompt(seed, 12), 40, SamplingSettings(seed % 2, seed=seed)) for seed in range(4)]
PLAIN_STEP = 0.01


@pytest.fixture(scope="module")
def target() -> TargetModel:
    """A target whose texts never end by themselves."""
    return tiny_target()


def make_env(target: TargetModel, requests: Requests = REQUESTS, **options: Any) -> SpeculationEnv:
    decoder = LiveDecoder(target, causal_draft(target))
    return SpeculationEnv(decoder, requests, **{"plain_step_seconds": PLAIN_STEP} | options)


Step = tuple[np.ndarray, float, bool, bool, dict[str, Any]]


def play(env: SpeculationEnv, controller: Controller, **reset: Any) -> list[Step]:
    """An episode in which a controller acts through the grid."""
    controller.reset()
    _, info = env.reset(**reset)
    steps = []
    while not steps or not (steps[-1][2] or steps[-1][3]):
        step = env.step(env.grid.index(controller.act(info["observation"])))
        info = step[-1]
        steps.append(step)
    return steps


class TestRounds:
    @pytest.mark.parametrize("observes_draft", [False, True])
    @pytest.mark.parametrize("source", SOURCES)
    @pytest.mark.parametrize(
        "name", ["autoregressive", "fixed_tree", "confidence", "dynamic_depth", "history", "banditspec"]
    )
    def test_they_equal_those_of_the_rule_without_the_environment(
        self, target: TargetModel, name: str, source: str, observes_draft: bool
    ) -> None:
        env = make_env(target, observes_draft=observes_draft)
        controller, twin = make_controller(f"{name}:source={source}"), make_controller(f"{name}:source={source}")
        decoder, drafted = LiveDecoder(target, causal_draft(target)), 0
        for index in (0, 1):
            seen = [step[-1]["outcome"] for step in play(env, controller, options={"request": index})]
            told = [step.outcome for step in steer(decoder, twin, REQUESTS[index])][1:]
            for field in ("tokens", "drafted", "depth", "accepted", "drafted_lookup", "accepted_lookup", "finished"):
                assert [getattr(one, field) for one in seen] == [getattr(one, field) for one in told]
            if not observes_draft:
                assert [one.level_rows for one in seen] == [one.level_rows for one in told]
            drafted += sum(one.drafted for one in seen)
        assert (drafted > 0) == (name != "autoregressive"), "the test would be vacuous"

    def test_every_rule_is_driven(self) -> None:
        assert set(controller_names()) >= {"autoregressive", "fixed_tree", "confidence", "dynamic_depth", "history"}

    @pytest.mark.parametrize("kind", ["causal", "feature", "lookup"])
    def test_random_actions_give_the_text_of_plain_decoding(self, kind: str) -> None:
        target = tiny_target()
        env = SpeculationEnv(LiveDecoder(target, make_draft(kind, target)), REQUESTS, plain_step_seconds=PLAIN_STEP)
        env.action_space.seed(1)
        for index, request in enumerate(REQUESTS):
            _, info = env.reset(options={"request": index})
            tokens, ended = list(info["outcome"].tokens), False
            while not ended:
                *_, truncated, info = env.step(env.action_space.sample())
                tokens += info["outcome"].tokens
                ended = truncated
            assert tokens == generate(target, LookupDraft(), request).tokens


class TestReward:
    @pytest.mark.parametrize("lam", [0.0, 1.0, 1.7])
    def test_it_is_tokens_less_the_price_of_time(self, target: TargetModel, lam: float) -> None:
        tokens = 0
        for _, reward, _, _, info in play(make_env(target, lam=lam), make_controller("history"), seed=0):
            outcome = info["outcome"]
            seconds = outcome.seconds.draft + outcome.seconds.verify + outcome.seconds.commit
            assert reward == pytest.approx(len(outcome.tokens) - lam * seconds / PLAIN_STEP)
            assert info["reward_terms"]["tokens"] == len(outcome.tokens)
            assert sum(info["reward_terms"].values()) == reward
            assert info["seconds"]["total"] == seconds > 0
            tokens += len(outcome.tokens)
        assert tokens == 39, "the first one is the reset's"

    def test_the_time_of_an_observation_is_paid_for(self, target: TargetModel) -> None:
        env = make_env(target)
        env.reset(seed=0)
        info = env.step(env.grid.index(PLAIN))[-1]
        assert info["drafted"] == 0
        assert info["seconds"]["draft_forward"] > 0
        assert info["levels"] == 1
        free = make_env(target, observes_draft=False)
        free.reset(seed=0)
        info = free.step(free.grid.index(PLAIN))[-1]
        assert (info["seconds"]["draft_forward"], info["levels"]) == (0, 0)

    def test_measuring_a_plain_step_happens_once_and_keeps_the_order(self, target: TargetModel) -> None:
        given, measured = make_env(target), make_env(target, plain_step_seconds=None)
        infos = [env.reset(seed=3)[1] for env in (given, measured)]
        assert infos[0]["request"] == infos[1]["request"]
        assert infos[0]["observation"] == infos[1]["observation"]
        step = measured.plain_step_seconds
        assert step is not None
        assert infos[1]["plain_step_seconds"] == step > 0
        assert given.reset()[1]["request"] == measured.reset()[1]["request"]
        assert measured.plain_step_seconds == step

    def test_too_little_room_to_measure_a_plain_step_is_refused(self, target: TargetModel) -> None:
        decoder = LiveDecoder(target, LookupDraft())
        assert measure_plain_step(decoder, Request((3,) * 126, 1)) > 0
        with pytest.raises(LimitError, match="no room to measure a plain step"):
            measure_plain_step(decoder, Request((3,) * 127, 1))


class TestObservation:
    def test_it_is_the_vector_of_the_decoders_observation(self, target: TargetModel) -> None:
        env = make_env(target)
        vector, info = env.reset(seed=0)
        ended = False
        while not ended:
            assert vector in env.observation_space
            np.testing.assert_array_equal(vector, feature_vector(info["observation"]))
            assert len(info["observation"].root_log_probs) == 4
            vector, _, _, ended, info = env.step(env.action_space.sample())
        assert vector in env.observation_space
        assert info["observation"].remaining == 0

    def test_draft_features_are_zero_if_the_draft_is_not_observed(self, target: TargetModel) -> None:
        env = make_env(target, observes_draft=False)
        vector, _ = env.reset(seed=0)
        draft = [index for index, feature in enumerate(FEATURES) if feature.group == "draft"]
        assert len(draft) == 7
        assert not vector[draft].any()
        assert make_env(target).reset(seed=0)[0][draft].all()

    def test_info_describes_the_round(self, target: TargetModel) -> None:
        env, accepted = make_env(target), 0
        env.reset(seed=0)
        parameters = TreeParameters(base_depth=3, max_depth=3)
        for _ in range(6):
            info = env.step(env.grid.index(parameters))[-1]
            outcome = info["outcome"]
            assert info["parameters"] == parameters
            assert info["tree_size"] == info["drafted"] + 1 == outcome.drafted + 1
            assert (info["tokens"], info["accepted"]) == (len(outcome.tokens), outcome.accepted)
            assert (info["depth"], info["levels"]) == (3, 3)
            assert set(info["seconds"]) == {"draft", "draft_forward", "verify", "verify_forward", "commit", "total"}
            accepted += info["accepted"]
        assert accepted > 0, "the test would be vacuous"

    def test_the_manual_holds_the_tables_of_the_code(self) -> None:
        manual = " ".join(str(SpeculationEnv.__doc__).split())
        for table in (feature_table(), ParameterGrid().table()):
            assert " ".join(table.split()) in manual
        assert all(f"## {part} " in manual for part in ("Observation", "Action", "Reward", "Episode end"))
        assert '``{"request": request}``' in manual


class TestEnds:
    def test_a_token_limit_truncates(self, target: TargetModel) -> None:
        *_, terminated, truncated, info = play(make_env(target), make_controller("history"), seed=0)[-1]
        assert (terminated, truncated) == (False, True)
        assert info["outcome"].finished is FinishReason.TOKEN_LIMIT

    def test_an_end_of_sequence_terminates(self, target: TargetModel) -> None:
        text = generate(target, LookupDraft(), REQUESTS[0]).tokens
        ending = tiny_target(end_tokens=[next(t for i, t in enumerate(text) if i > 3 and t not in text[:i])])
        steps = play(make_env(ending), make_controller("history"), options={"request": 0})
        *_, terminated, truncated, _ = steps[-1]
        assert (terminated, truncated) == (True, False)
        assert steps[-1][0] in make_env(ending).observation_space

    def test_the_context_truncates(self) -> None:
        env = make_env(tiny_target(max_position_embeddings=24), [Request(make_prompt(3, 12), 100)])
        *_, terminated, truncated, info = play(env, make_controller("fixed_tree"), seed=0)[-1]
        assert (terminated, truncated) == (False, True)
        assert info["outcome"].finished is FinishReason.CONTEXT_LIMIT

    def test_requests_that_end_with_their_first_token_are_skipped(self, target: TargetModel) -> None:
        short = [dataclasses.replace(request, max_new_tokens=1) for request in REQUESTS]
        env = make_env(target, [*short, REQUESTS[2]])
        for _ in range(8):
            assert env.reset()[1]["request"] == REQUESTS[2]
        for requests, count in ((short, 8), (lambda generator: short[0], 100)):
            with pytest.raises(LimitError, match=f"got {count} in a row that end with the first token"):
                make_env(target, requests).reset()
        with pytest.raises(LimitError, match="got 1 in a row"):
            env.reset(options={"request": 0})


class TestSeeds:
    def test_a_seed_decides_requests_tokens_and_observations(self, target: TargetModel) -> None:
        runs = []
        for seed in (7, 7, 8):
            env, found = make_env(target), []
            env.action_space.seed(0)
            for reset in ({"seed": seed}, {}, {}, {}, {}):
                vector, info = env.reset(**reset)
                found.append((info["request"], vector.tolist()))
                for _ in range(3):
                    vector, _, _, _, info = env.step(env.action_space.sample())
                    found.append((info["outcome"].tokens, vector.tolist()))
            runs.append(found)
        assert runs[0] == runs[1]
        assert runs[0] != runs[2]

    def test_a_seed_given_again_begins_again(self, target: TargetModel) -> None:
        env = make_env(target)
        first = [env.reset(**reset)[1]["request"] for reset in ({"seed": 5}, {}, {})]
        assert [env.reset(**reset)[1]["request"] for reset in ({"seed": 5}, {}, {})] == first
        assert len(set(first)) == 3

    def test_a_request_of_the_options_does_not_move_the_order(self, target: TargetModel) -> None:
        env, other = make_env(target), make_env(target)
        env.reset(seed=5)
        other.reset(seed=5)
        assert env.reset(options={"request": 2})[1]["request"] == REQUESTS[2]
        mine = Request((4, 5, 6), 9)
        assert env.reset(options={"request": mine})[1]["request"] == mine
        assert env.reset()[1]["request"] == other.reset()[1]["request"]


class TestErrors:
    def test_a_step_needs_an_episode(self, target: TargetModel) -> None:
        env = make_env(target)
        with pytest.raises(ResetNeeded, match=r"call reset\(\) before step"):
            env.step(env.action_space.sample())
        play(env, make_controller("fixed_tree"))
        with pytest.raises(ResetNeeded, match=r"call reset\(\) before step"):
            env.step(env.action_space.sample())

    def test_after_a_reset_that_failed_there_is_no_episode(self, target: TargetModel) -> None:
        env = make_env(target)
        env.reset(seed=0)
        with pytest.raises(LimitError, match="Shorten the prompt"):
            env.reset(options={"request": Request((3,) * 200)})
        with pytest.raises(ResetNeeded):
            env.step(env.action_space.sample())

    @pytest.mark.parametrize("observes_draft", [False, True])
    def test_after_a_round_that_failed_there_is_no_episode_until_the_next_reset(
        self, target: TargetModel, observes_draft: bool
    ) -> None:
        draft = causal_draft(target)
        weights = draft.model.model.lm_head.weight
        whole = weights.detach().clone()
        env = SpeculationEnv(
            LiveDecoder(target, draft), REQUESTS, plain_step_seconds=PLAIN_STEP, observes_draft=observes_draft
        )
        env.reset(seed=0)
        weights.data[5, 5] = torch.nan
        action = env.grid.index(TreeParameters())
        with pytest.raises(NumericalError, match="draft returned NaN"):
            env.step(action)
        with pytest.raises(ResetNeeded):
            env.step(action)
        weights.data.copy_(whole)
        env.reset(seed=0)
        assert env.step(action)[-1]["tokens"] > 0

    def test_an_action_off_the_grid_costs_nothing(self, target: TargetModel) -> None:
        env = make_env(target)
        env.reset(seed=0)
        tokens = list(env.decoder.tokens)
        with pytest.raises(ParameterError, match="index of base_depth within 0 and 10; got 11"):
            env.step([11, 0, 0, 0, 0, 0])
        assert env.decoder.tokens == tokens
        assert env.step([2, 0, 0, 0, 0, 0])[-1]["tokens"] > 0

    def test_two_environments_on_one_decoder_are_refused(self, target: TargetModel) -> None:
        decoder = LiveDecoder(target, LookupDraft())
        first, second = (SpeculationEnv(decoder, REQUESTS, plain_step_seconds=PLAIN_STEP) for _ in range(2))
        for env in (first, second):
            env.reset(seed=0)
        with pytest.raises(RuntimeError, match="Somebody else started a request on this decoder"):
            first.step(first.grid.index(PLAIN))
        assert second.step(second.grid.index(PLAIN))[-1]["tokens"] == 1

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"lam": -0.1}, ParameterError, r"lam must be 0 or a positive .*got -0.1"),
            ({"lam": float("nan")}, ParameterError, r"lam .*got nan"),
            ({"plain_step_seconds": 0.0}, ParameterError, r"plain_step_seconds must be a positive time; got 0.0"),
            ({"render_mode": "rgb"}, UnknownNameError, r"render_mode 'rgb'. Did you mean rgb_array\?"),
            ({"grid": ParameterGrid(branch=(0, 5))}, ParameterError, r"at most 4 children; the grid has trees of 5"),
            ({"requests": []}, LimitError, r"one request or more"),
        ],
    )
    def test_invalid_arguments_are_refused(
        self, target: TargetModel, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            make_env(target, **options)

    def test_a_wide_grid_is_accepted_if_the_draft_is_not_observed(self, target: TargetModel) -> None:
        env = make_env(target, grid=ParameterGrid(branch=(0, 5)), observes_draft=False)
        env.reset(seed=0)
        assert env.step([1, 0, 0, 0, 0, 1])[-1]["drafted"] == 5

    def test_an_unknown_option_of_reset_is_refused(self, target: TargetModel) -> None:
        with pytest.raises(UnknownNameError, match=r"option of reset 'requests'. Did you mean request\?"):
            make_env(target).reset(options={"requests": 1})


class TestRender:
    def test_the_last_rounds_tree_is_drawn_as_text(self, target: TargetModel) -> None:
        env = make_env(target, render_mode="ansi")
        with pytest.raises(ResetNeeded, match="nothing to draw yet"):
            env.render()
        env.reset(seed=0)
        for action in itertools.islice(itertools.repeat(env.grid.index(TreeParameters())), 5):
            with contextlib.suppress(ResetNeeded):
                info = env.step(action)[-1]
            drawn = env.render()
            assert f"{info['drafted']} nodes to depth 4: {info['accepted']} accepted" in drawn
            assert len([line for line in drawn.splitlines() if "p=" in line]) == info["drafted"]
            assert len([line for line in drawn.splitlines() if "─* " in line]) == info["accepted"]

    def test_a_picture_can_be_taken_before_the_first_round_too(self, target: TargetModel) -> None:
        env = make_env(target, render_mode="rgb_array")
        env.reset(seed=0)
        first = env.render()
        env.step(env.grid.index(TreeParameters()))
        assert first.shape == env.render().shape == (500, 900, 3)
        assert (first != env.render()).any()

    def test_without_a_mode_there_is_nothing_to_draw(self, target: TargetModel) -> None:
        env = make_env(target)
        env.reset(seed=0)
        with pytest.raises(ParameterError, match="make it with render_mode='ansi'"):
            env.render()

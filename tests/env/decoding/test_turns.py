"""Several users of one pair: each gets its own text, or an error before a token of another's."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import gymnasium as gym
import pytest

from specgym.controllers.registry import make_controller
from specgym.controllers.run import SteeredRound, run, steer
from specgym.env.decoding.live import LiveDecoder
from specgym.env.decoding.pair import ModelPair
from specgym.env.gym.live_env import LiveSpeculation
from specgym.env.models.target import TargetModel
from specgym.env.tree.parameters import TreeParameters
from specgym.env.tree.rounds import Request
from tests.support.tiny_models import DRAFT_KINDS, make_draft, make_prompt, tiny_target
from tests.support.tiny_pair import tiny_tokenizer

KINDS = pytest.mark.parametrize("kind", DRAFT_KINDS)
REQUESTS = [Request(make_prompt(seed), 24) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def target() -> TargetModel:
    return tiny_target()


def make_pair(target: TargetModel, kind: str) -> ModelPair:
    return ModelPair(target, make_draft(kind, target), tiny_tokenizer(), "tiny", kind, "memory")


def texts(target: TargetModel) -> list[list[int]]:
    """The texts, each alone."""
    return [run(LiveDecoder(target, make_draft("lookup", target)), _plain(), request).tokens for request in REQUESTS]


def _plain() -> object:
    return make_controller("autoregressive")


def start(decoder: LiveDecoder, request: Request) -> Iterator[SteeredRound]:
    return steer(decoder, make_controller("fixed_tree"), request)


@KINDS
def test_decoders_of_a_pair_take_turns(target: TargetModel, kind: str) -> None:
    pair, expected = make_pair(target, kind), texts(target)
    under_way = {number: start(pair.decoder(), request) for number, request in enumerate(REQUESTS)}
    made: list[list[int]] = [[] for _ in REQUESTS]
    while under_way:
        for number, rounds in list(under_way.items()):
            step = next(rounds, None)
            if step is None:
                del under_way[number]
            else:
                made[number].extend(step.outcome.tokens)
    assert made == expected


@KINDS
def test_decoders_of_a_pair_run_in_threads(target: TargetModel, kind: str) -> None:
    pair, expected = make_pair(target, kind), texts(target)
    made: dict[int, list[int]] = {}

    def work(number: int) -> None:
        made[number] = run(pair.decoder(), make_controller("fixed_tree"), REQUESTS[number]).tokens

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(REQUESTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [made[number] for number in range(len(REQUESTS))] == expected


@KINDS
def test_decoders_with_the_same_models_are_refused_when_they_take_turns(target: TargetModel, kind: str) -> None:
    draft = make_draft(kind, target)
    first, second = start(LiveDecoder(target, draft), REQUESTS[0]), start(LiveDecoder(target, draft), REQUESTS[1])
    next(first), next(second)
    with pytest.raises(RuntimeError, match=r"Another text was started in the caches.*pair\.decoder\(\)"):
        next(first)
    rest = [token for step in second for token in step.outcome.tokens]
    assert rest == texts(target)[1][1:]


@pytest.mark.parametrize("kind", ["causal", "feature"])
def test_decoders_that_share_only_a_draft_are_refused_too(target: TargetModel, kind: str) -> None:
    draft = make_draft(kind, target)
    first, second = (start(LiveDecoder(target.fork(), draft), request) for request in REQUESTS[:2])
    next(first), next(second)
    with pytest.raises(RuntimeError, match="Another text was started in the caches"):
        next(first)


@pytest.mark.parametrize("request_number", [0, 1])
def test_a_whole_text_between_two_rounds_on_one_decoder_is_noticed(target: TargetModel, request_number: int) -> None:
    decoder = LiveDecoder(target, make_draft("lookup", target))
    first = start(decoder, REQUESTS[0])
    next(first)
    run(decoder, make_controller("fixed_tree"), REQUESTS[request_number])
    with pytest.raises(RuntimeError, match="Another text was started"):
        next(first)


def test_reading_something_with_the_target_between_two_rounds_is_noticed(target: TargetModel) -> None:
    decoder = LiveDecoder(target, make_draft("lookup", target))
    decoder.start(REQUESTS[0])
    target.start()
    with pytest.raises(RuntimeError, match="Another text was started in the caches"):
        decoder.round(TreeParameters())


@KINDS
def test_environments_with_one_decoder_take_turns(target: TargetModel, kind: str) -> None:
    decoder = LiveDecoder(target, make_draft(kind, target))

    def make(number: int) -> LiveSpeculation:
        return LiveSpeculation(
            decoder, requests=REQUESTS[number : number + 1], plain_step_seconds=1.0, observes_draft=False
        )

    envs = gym.vector.SyncVectorEnv([lambda number=number: make(number) for number in range(2)])
    envs.reset(seed=0)
    made: list[list[int]] = [list(env.unwrapped.decoder.tokens) for env in envs.envs]
    for _ in range(3):
        envs.step(envs.action_space.sample())
    expected = texts(target)
    for number, env in enumerate(envs.envs):
        tokens, prompt = env.unwrapped.decoder.tokens, list(REQUESTS[number].prompt)
        assert len(tokens) > len(made[number]), "the test would be vacuous"
        assert tokens == (prompt + expected[number])[: len(tokens)]

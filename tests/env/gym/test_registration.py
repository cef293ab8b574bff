"""The environments by their names: as Gymnasium and Stable-Baselines3 want them, one by one and side by side."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3
from stable_baselines3.common.env_util import make_vec_env

from specgym.env.common.errors import LimitError, ParameterError, PromptError, UnknownNameError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.decoding.pair import encode_chat, load_pair
from specgym.env.gym.grid import ParameterGrid
from specgym.env.gym.live_env import LiveSpeculation
from specgym.env.gym.registration import register_environments
from specgym.env.gym.speculation import SpeculationEnv
from specgym.env.tree.rounds import Request
from tests.support.tiny_models import causal_draft, make_prompt, tiny_target
from tests.support.tiny_pair import CONTEXT, save_tiny_folders

LIVE = "specgym/Live-v0"
REQUESTS = [Request(make_prompt(seed), 20) for seed in range(4)]
TEXTS = ["hello there", "one two one two", "aaaa", "what is it"]


def make_decoder() -> LiveDecoder:
    target = tiny_target()
    return LiveDecoder(target, causal_draft(target))


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments that load a tiny pair and prompts from files."""
    folder = tmp_path_factory.mktemp("pair")
    folders, prompts = save_tiny_folders(folder), folder / "prompts.jsonl"
    lines = [json.dumps({"question_id": number, "turns": [text, "more"]}) for number, text in enumerate(TEXTS)]
    prompts.write_text("\n".join(lines), encoding="utf-8")
    return {
        "target": str(folders.target),
        "draft": str(folders.draft),
        "dtype": "float32",
        "prompts": str(prompts),
        "max_new_tokens": 24,
        "plain_step_seconds": 0.01,
    }


class TestNames:
    def test_the_name_is_registered_once_and_as_wall_clock(self) -> None:
        spec = gym.spec("specgym/Live-v0")
        register_environments()
        assert gym.spec("specgym/Live-v0") is spec
        assert spec.nondeterministic

    def test_a_ready_decoder_is_taken_with_caches_of_its_own(self) -> None:
        decoder = make_decoder()
        env = gym.make(LIVE, decoder=decoder, requests=REQUESTS, lam=0.5, observes_draft=False)
        assert isinstance(env.unwrapped, SpeculationEnv)
        assert isinstance(env.unwrapped.decoder, LiveDecoder)
        assert env.unwrapped.decoder.target.model is decoder.target.model
        assert env.unwrapped.decoder.target.cache is not decoder.target.cache
        assert (env.unwrapped.lam, env.unwrapped.observes_draft) == (0.5, False)

    def test_a_decoder_without_requests_is_refused(self) -> None:
        with pytest.raises(ParameterError, match=r"give requests=\[Request"):
            LiveSpeculation(make_decoder)

    def test_an_unknown_argument_is_refused(self) -> None:
        with pytest.raises(TypeError, match="cost_of_time"):
            gym.make(LIVE, decoder=make_decoder, requests=REQUESTS, cost_of_time=1)


class TestCheckers:
    def test_gymnasiums_checker_passes(self) -> None:
        env = gym.make(LIVE, decoder=make_decoder, requests=REQUESTS).unwrapped
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env(env)

    def test_the_checker_of_stable_baselines3_passes(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env_of_sb3(LiveSpeculation(make_decoder, requests=REQUESTS))

    def test_stable_baselines3_steps_several(self) -> None:
        envs = make_vec_env(LIVE, 2, seed=0, env_kwargs={"decoder": make_decoder, "requests": REQUESTS})
        assert envs.reset().shape == (2, *envs.observation_space.shape)
        for _ in range(25):
            _, rewards, dones, infos = envs.step(np.array([envs.action_space.sample() for _ in range(2)]))
            assert rewards.shape == (2,)
            assert all("terminal_observation" in info for info, done in zip(infos, dones, strict=True) if done)
        envs.close()


class TestLoading:
    def test_a_pair_and_its_prompts_are_loaded(self, arguments: dict[str, Any]) -> None:
        env = LiveSpeculation(**arguments, temperature=1.0, top_k=9, seed=5, limit=3, render_mode="ansi")
        pair = load_pair(arguments["target"], arguments["draft"], "float32")
        found = {env.reset(options={"request": index})[1]["request"] for index in range(3)}
        assert {request.prompt for request in found} == {encode_chat(pair.tokenizer, [text]) for text in TEXTS[:3]}
        assert {
            (request.max_new_tokens, request.sampling.temperature, request.sampling.top_k) for request in found
        } == {(24, 1.0, 9)}
        assert {request.sampling.seed for request in found} == {5, 6, 7}
        env.step(env.grid.index(ParameterGrid().parameters([3, 0, 0, 0, 0, 0])))
        assert "'" in env.render().splitlines()[1], "tokens are shown by their texts"

    @pytest.mark.parametrize(
        ("wrong", "error", "message"),
        [
            ({"prompts": "bultin"}, PromptError, "Did you mean builtin"),
            ({"target": "smollm2-135m-instructs"}, UnknownNameError, "smollm2-135m-instruct"),
            ({"temperature": -1}, ParameterError, "temperature must be 0"),
            ({"max_new_tokens": 0}, LimitError, "max_new_tokens must be 1 or more; got 0"),
            ({"dtype": "int4"}, ParameterError, "dtype must be one of"),
        ],
    )
    def test_invalid_arguments_are_refused(
        self, arguments: dict[str, Any], wrong: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            LiveSpeculation(**arguments | wrong)

    def test_a_prompt_that_does_not_fit_is_refused_before_the_first_episode(
        self, arguments: dict[str, Any], tmp_path: Path
    ) -> None:
        prompts = tmp_path / "long.jsonl"
        prompts.write_text(json.dumps({"question_id": 1, "turns": ["a" * CONTEXT]}), encoding="utf-8")
        with pytest.raises(LimitError, match=f"reads at most {CONTEXT}"):
            LiveSpeculation(**arguments | {"prompts": str(prompts)})


class TestVector:
    def played(self, envs: gym.vector.VectorEnv) -> list[Any]:
        observations, info = envs.reset(seed=3)
        found = [observations.tolist(), info["request"].tolist()]
        envs.action_space.seed(1)
        for _ in range(12):
            observations, rewards, *_, info = envs.step(envs.action_space.sample())
            assert rewards.shape == (2,)
            tokens = [None if outcome is None else outcome.tokens for outcome in info["outcome"]]
            found.append((observations.tolist(), tokens))
        envs.close()
        return found

    def test_environments_in_one_process_and_in_several_agree(self, arguments: dict[str, Any]) -> None:
        """Both kinds give the same tokens and observations under a seed; the workers load their own models."""
        together = gym.make_vec(LIVE, num_envs=2, vectorization_mode="sync", **arguments)
        apart = gym.make_vec(
            LIVE, num_envs=2, vectorization_mode="async", vector_kwargs={"context": "spawn"}, **arguments
        )
        first = self.played(together)
        assert first == self.played(apart)
        assert first[0][0] != first[0][1], "the test would be vacuous"

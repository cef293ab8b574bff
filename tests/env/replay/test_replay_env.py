"""Recorded texts by the environment's name: deterministic, rewards included, and refused by name if they do not fit."""

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

from specgym.env.common.errors import ParameterError, TraceError, UnknownNameError, UnrecordedError
from specgym.env.gym.grid import ParameterGrid
from specgym.env.latency.families import FAMILIES, compute_bound
from specgym.env.latency.latency_profile import ProfileError
from specgym.env.replay import sources as recordings
from specgym.env.replay.decoder import ReplayDecoder
from specgym.env.replay.replay_env import ReplaySpeculation
from specgym.env.replay.sources import choose_texts, find_trace
from specgym.env.tree.parameters import TreeParameters
from specgym.env.tree.rounds import Request
from tests.support.tiny_trace import save_tiny_trace

REPLAY = "specgym/Replay-v0"


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_trace(tmp_path_factory.mktemp("trace") / "tiny.sgt")


def decoder(trace: Path) -> ReplayDecoder:
    found = find_trace(trace)
    return ReplayDecoder(found.texts, found.header, compute_bound())


class TestRegistration:
    def test_a_seed_fixes_rewards(self) -> None:
        assert not gym.spec("specgym/Replay-v0").nondeterministic

    def test_gymnasiums_checker_has_nothing_to_say(self, trace: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env(gym.make(REPLAY, traces=trace).unwrapped)

    def test_stable_baselines3s_has_nothing_to_say(self, trace: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env_of_sb3(ReplaySpeculation(traces=trace))

    def played(self, envs: gym.vector.VectorEnv) -> list[Any]:
        seen, _ = envs.reset(seed=3)
        found = [seen.tolist()]
        envs.action_space.seed(1)
        for _ in range(12):
            seen, rewards, *_ = envs.step(envs.action_space.sample())
            found.append((seen.tolist(), rewards.tolist()))
        envs.close()
        return found

    def test_side_by_side_and_in_processes_of_their_own_they_say_the_same(self, trace: Path) -> None:
        arguments: dict[str, Any] = {"num_envs": 2, "traces": str(trace), "split": None}
        together = gym.make_vec(REPLAY, vectorization_mode="sync", **arguments)
        apart = gym.make_vec(REPLAY, vectorization_mode="async", vector_kwargs={"context": "spawn"}, **arguments)
        first = self.played(together)
        assert first == self.played(apart)
        assert first[0][0] != first[0][1], "the test would be vacuous"


class TestReward:
    def test_a_seed_decides_it(self, trace: Path) -> None:
        runs = []
        for seed in (7, 7, 8):
            env = ReplaySpeculation(traces=trace, profile="compute_bound")
            env.action_space.seed(0)
            env.reset(seed=seed)
            runs.append([])
            for _ in range(40):
                _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                runs[-1].append(reward)
                if terminated or truncated:
                    env.reset()
        assert runs[0] == runs[1] != runs[2]

    def test_a_plain_round_saves_nothing_however_long_the_text(self, trace: Path) -> None:
        env = ReplaySpeculation(traces=trace, profile="compute_bound", observes_draft=False)
        _, info = env.reset(seed=0)
        steps = [info["plain_step_seconds"]]
        for _ in range(10):
            _, reward, *_, info = env.step(env.grid.index(TreeParameters(0, 0)))
            assert reward == pytest.approx(0, abs=1e-12)
            steps.append(info["plain_step_seconds"])
        assert steps == sorted(steps)
        assert steps[0] < steps[-1], "the test would be vacuous"

    def test_it_is_the_time_saved_against_plain_rounds_at_the_same_place(self, trace: Path) -> None:
        env, costs = ReplaySpeculation(traces=trace, profile="compute_bound", lam=0.7), compute_bound()
        env.reset(seed=0)
        for _ in range(10):
            position, greedy = len(env.decoder.tokens) - 1, env.decoder.request.sampling.greedy
            _, reward, terminated, truncated, info = env.step(env.action_space.sample())
            plain = costs.costs(greedy).plain_seconds(position)
            assert reward == pytest.approx(info["tokens"] - 0.7 * info["seconds"]["total"] / plain)
            if terminated or truncated:
                env.reset()

    def test_a_plain_step_may_be_given(self, trace: Path) -> None:
        env = ReplaySpeculation(traces=trace, plain_step_seconds=0.5)
        assert env.reset()[1]["plain_step_seconds"] == 0.5


class TestWhatIsReplayed:
    def test_the_texts_of_a_split_and_a_temperature(self, trace: Path) -> None:
        for split, temperature in (("train", None), ("test", None), (None, 1.0), (None, None)):
            env = ReplaySpeculation(traces=trace, split=split, temperature=temperature)
            texts = choose_texts(find_trace(trace).texts, split, temperature)
            count = len(texts)
            found = {env.reset(options={"request": index})[1]["request"] for index in range(count)}
            assert {(each.prompt, each.sampling) for each in found} == {
                (text.tokens[: text.prompt], text.settings) for text in texts
            }

    def test_traces_of_the_same_pair_are_one(self, trace: Path, tmp_path: Path) -> None:
        other = save_tiny_trace(tmp_path / "other.sgt", prompts=2)
        assert len(find_trace([trace, other]).texts) == len(find_trace(trace).texts) + len(find_trace(other).texts)

    def test_the_grid_is_one_that_the_trace_covers(self, trace: Path) -> None:
        env = ReplaySpeculation(traces=trace, split=None)
        assert env.grid.branch == (0,)
        assert min(env.grid.early_stop) == 0.05
        env.action_space.seed(0)
        env.reset(seed=0)
        for _ in range(150):
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                env.reset()

    @pytest.mark.parametrize("ready", [True, False], ids=["ready", "made"])
    def test_a_decoder_may_be_given(self, trace: Path, ready: bool) -> None:
        made = decoder(trace)
        env = gym.make(REPLAY, decoder=made if ready else lambda: made, split="test", lam=0.5).unwrapped
        assert isinstance(env, ReplaySpeculation)
        assert env.decoder is made
        assert env.lam == 0.5
        env.reset(seed=0)
        assert env.step(env.action_space.sample())[4]["tokens"] > 0

    def test_a_profile_may_be_named_read_or_given(self, trace: Path, tmp_path: Path) -> None:
        path = tmp_path / "machine.json"
        compute_bound().save(path)
        steps = [
            ReplaySpeculation(traces=trace, profile=profile).reset(seed=0)[1]["observation"].row_cost
            for profile in ("compute_bound", path, str(path), compute_bound(), "overhead_bound", None)
        ]
        assert steps[0] == steps[1] == steps[2] == steps[3] != steps[4] == steps[5]


class TestErrors:
    def test_no_trace_is_an_error_where_none_is_shipped(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(recordings, "DEFAULT_TRACE", tmp_path / "none.sgt.xz")
        with pytest.raises(TraceError, match=r"Expected a trace to replay.*Record one with specgym record"):
            ReplaySpeculation()

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"split": "trein"}, UnknownNameError, r"Unknown split 'trein'. Did you mean train\?"),
            ({"profile": "compute_bond"}, UnknownNameError, r"latency profile 'compute_bond'. Did you mean compute_b"),
            ({"profile": "missing.json"}, ProfileError, "no latency profile to read at missing.json"),
            ({"temperature": 0.5}, TraceError, r"split=train, temperature=0.5 .*train at 0, train at 1"),
            ({"lam": -1}, ParameterError, "lam must be 0 or a positive"),
            ({"grid": ParameterGrid(branch=(5,))}, ParameterError, "at most 4 children; the grid has trees of 5"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, trace: Path, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            ReplaySpeculation(traces=trace, **options)

    def test_a_profile_of_another_schema_is_refused(self, trace: Path, tmp_path: Path) -> None:
        path = tmp_path / "other.json"
        path.write_text(json.dumps({"format": "specgym latency profile 9"}), encoding="utf-8")
        with pytest.raises(ProfileError, match=r"other.json is no latency profile of this version: .*profile 9"):
            ReplaySpeculation(traces=trace, profile=path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "cannot be read"),
            (b"something else entirely", "is no trace: expected it to begin with"),
            (None, "the checksum of frame 1 does not fit"),
        ],
        ids=["empty", "foreign", "corrupt"],
    )
    def test_a_broken_trace_is_named(self, trace: Path, tmp_path: Path, content: bytes | None, message: str) -> None:
        path, whole = tmp_path / "broken.sgt", bytearray(trace.read_bytes())
        middle = whole.index(b"TEXT") + 200
        whole[middle] ^= 1
        path.write_bytes(bytes(whole) if content is None else content)
        with pytest.raises(TraceError, match=f"broken.sgt.*{message}"):
            ReplaySpeculation(traces=path)

    def test_traces_of_different_pairs_are_not_mixed(self, trace: Path, tmp_path: Path) -> None:
        other = save_tiny_trace(tmp_path / "other.sgt", "feature", prompts=1)
        with pytest.raises(TraceError, match="different pairs or rules"):
            ReplaySpeculation(traces=[trace, other])

    def test_a_decoder_and_a_trace_are_one_too_many(self, trace: Path) -> None:
        for more in ({"traces": trace}, {"profile": "compute_bound"}):
            with pytest.raises(ParameterError, match="give either it, or traces and profile"):
                ReplaySpeculation(decoder(trace), **more)  # type: ignore[arg-type]

    def test_an_action_off_the_grid_and_one_off_the_trace_are_refused(self, trace: Path) -> None:
        wide = ParameterGrid(base=TreeParameters(8, 8, deep_expand=0.7, frontier_width=60))
        env = ReplaySpeculation(traces=trace, grid=wide)
        env.reset(seed=0)
        with pytest.raises(ParameterError, match="index of early_stop within 0 and 5; got 6"):
            env.step([1, 0, 6, 0, 0, 0])
        with pytest.raises(UnrecordedError, match="Ask for a tree within the recorded ones"):
            env.step([8, 0, 0, 0, 0, 0])

    def test_a_request_of_another_text_is_refused(self, trace: Path) -> None:
        env = ReplaySpeculation(traces=trace, requests=[Request((1, 2, 3), 9)])
        with pytest.raises(UnrecordedError, match="no text for this prompt of 3 tokens"):
            env.reset(seed=0)


def test_every_family_may_be_named(trace: Path) -> None:
    costs = {name: ReplaySpeculation(traces=trace, profile=name).reset(seed=0)[0][-2:].tolist() for name in FAMILIES}
    assert len({tuple(np.round(each, 6)) for each in costs.values()}) == len(FAMILIES)

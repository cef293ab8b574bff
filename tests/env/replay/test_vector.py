"""Many replays stepped together say what each of them says alone."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from specgym.env.common.errors import LimitError, ParameterError, TraceError, UnknownNameError, UnrecordedError
from specgym.env.gym.features import FEATURES
from specgym.env.gym.grid import ParameterGrid
from specgym.env.latency.costs import Curve, RoundCosts, UnmeasuredError
from specgym.env.latency.families import FAMILIES, CommonCosts, compute_bound
from specgym.env.latency.latency_profile import LatencyProfile
from specgym.env.replay.replay_env import ReplaySpeculation
from specgym.env.replay.sources import find_trace, text_request
from specgym.env.replay.vector import ReplayVectorEnv, VectorStep
from specgym.env.tree.parameters import SOURCES, TreeParameters
from tests.support.tiny_trace import save_tiny_trace

SMALL = ParameterGrid(
    base_depth=(0, 1, 4),
    high_confidence=(0.8,),
    early_stop=(0.05, 0.3),
    deep=(False, True),
    source=SOURCES,
    branch=(0,),
)
"""a grid of few actions, every kind among them"""


def curve(what: str, rows: int, first: float) -> Curve:
    """A bent curve known at three contexts."""
    numbers = np.arange(1, rows + 1)
    return Curve(what, tuple(numbers.tolist()), tuple(tuple((first * (k + numbers**0.7)).tolist()) for k in (1, 2, 5)))


def bent(first: float, rows: int = 40) -> RoundCosts:
    """Costs whose every part is unlike the others; the owed tokens soon pass their curve."""
    return RoundCosts(
        contexts=(3, 12, 20),
        plain=curve("plain steps", 1, first),
        root=curve("owed tokens", 5, 0.21 * first),
        level=curve("expanded nodes", 9, 0.13 * first),
        verify=curve("verified rows", rows, first),
        root_row=0.01 * first,
        overhead=0.07 * first,
        lookup=0.003 * first,
    )


BENT = LatencyProfile(bent(0.011), bent(0.013))


def flat(costs: RoundCosts) -> RoundCosts:
    """The same, known at one context only."""
    curves = {name: each for name, each in vars(costs).items() if isinstance(each, Curve)}
    first = {name: dataclasses.replace(each, seconds=each.seconds[:1]) for name, each in curves.items()}
    return dataclasses.replace(costs, contexts=(0,), **first)


PROFILES = (
    LatencyProfile(bent(0.011), bent(0.013)),
    LatencyProfile(flat(bent(0.01)), flat(bent(0.02))),
    compute_bound(CommonCosts(draft_ratio=0.3)),
)


@pytest.fixture(scope="module", params=["causal", "feature"])
def trace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_trace(tmp_path_factory.mktemp("trace") / "tiny.sgt", request.param)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_trace(tmp_path_factory.mktemp("trace") / "causal.sgt")


def make(trace: Path, num_envs: int = 3, **options: Any) -> ReplayVectorEnv:
    return ReplayVectorEnv(**{"num_envs": num_envs, "traces": trace, "split": None, "grid": SMALL} | options)


class Shadows:
    """Plays every episode of a vector environment once more, each alone."""

    def __init__(self, envs: ReplayVectorEnv, trace: Path, **options: Any) -> None:
        found = find_trace(trace)
        self.envs = envs
        self.there = [
            [ReplaySpeculation(traces=found, profile=profile, split=None, **options) for profile in PROFILES]
            for _ in range(envs.num_envs)
        ]
        self.ended = np.ones(envs.num_envs, np.bool_)
        self.kinds: set[tuple[Any, ...]] = set()

    def begin(self, seen: np.ndarray) -> None:
        """Begins the episodes that are new, and compares what is seen of them."""
        states = self.envs.states
        self.playing = [there[profile] for there, profile in zip(self.there, states.profile, strict=True)]
        for index in np.flatnonzero(self.ended):
            text = self.envs.replays.texts[states.text[index]]
            first, _ = self.playing[index].reset(options={"request": text_request(text)})
            np.testing.assert_array_equal(seen[index], first)

    def step(self, actions: np.ndarray, told: VectorStep) -> None:
        """Compares a step with those of the single environments."""
        seen, rewards, terminated, truncated, info = told
        self.ended = terminated | truncated
        for index, env in enumerate(self.playing):
            vector, reward, *ends, single = env.step(actions[index])
            np.testing.assert_array_equal(info["final_obs"][index] if self.ended[index] else seen[index], vector)
            assert rewards[index] == pytest.approx(reward, abs=1e-9)
            assert [terminated[index], truncated[index]] == ends
            assert [info[name][index] for name in NAMES] == [single[name] for name in NAMES]
            assert info["seconds"][index] == pytest.approx(single["seconds"]["total"], rel=1e-12)
            self.kinds.add((single["parameters"].source, single["parameters"].speculates, bool(single["accepted"])))
            self.kinds.add(tuple(ends))


NAMES = ("tokens", "accepted", "drafted", "depth")


class TestEquality:
    @pytest.mark.parametrize("observes_draft", [False, True])
    @pytest.mark.parametrize("grid", [SMALL, None], ids=["small", "covered"])
    def test_every_round_is_the_single_environments(
        self, trace: Path, grid: ParameterGrid | None, observes_draft: bool
    ) -> None:
        options: dict[str, Any] = {"grid": grid, "lam": 0.8, "observes_draft": observes_draft}
        envs = make(trace, 6, profile=PROFILES, **options)
        shadows, rng = Shadows(envs, trace, **options), np.random.default_rng(0)
        pool = rng.integers(envs.single_action_space.nvec, size=(40, 6))
        pool[:4, 0] = 0
        seen, _ = envs.reset(seed=4)
        for _ in range(80):
            shadows.begin(seen)
            actions = pool[rng.integers(len(pool), size=6)]
            told = envs.step(actions)
            shadows.step(actions, told)
            seen = told[0]
        expected = {(source, True, accepted) for source in SOURCES for accepted in (False, True)}
        assert shadows.kinds >= expected | {("model", False, False), (True, False), (False, True), (False, False)}

    def test_the_end_of_an_episode_is_told_as_a_whole(self, causal: Path) -> None:
        envs = make(causal, 4, lam=0.5)
        envs.reset(seed=0)
        envs.action_space.seed(0)
        sums, told = np.zeros((3, 4)), 0
        for _ in range(60):
            _, rewards, terminated, truncated, info = envs.step(envs.action_space.sample())
            sums += [info["tokens"], info["plain_steps"], rewards]
            ended = terminated | truncated
            assert ("final_info" in info) == ended.any()
            for index in np.flatnonzero(ended):
                episode = info["final_info"]["episode"]
                found = [episode[name][index] for name in ("tokens", "plain_steps", "r")]
                assert found == pytest.approx(sums[:, index])
                text = envs.replays.texts[info["text"][index]]
                assert episode["tokens"][index] == len(text.tokens) - text.prompt - 1
                assert terminated[index] == (text.tokens[-1] in (4, 9))
                sums[:, index] = 0
                told += 1
        assert told > 4


class TestEpisodes:
    def played(self, envs: ReplayVectorEnv, seed: int, steps: int = 30) -> list[Any]:
        seen, _ = envs.reset(seed=seed)
        envs.action_space.seed(0)
        found = [seen.tolist()]
        for _ in range(steps):
            seen, rewards, *_, info = envs.step(envs.action_space.sample())
            found.append((seen.tolist(), rewards.tolist(), info["text"].tolist(), info["profile"].tolist()))
        return found

    def test_a_seed_decides_everything(self, causal: Path) -> None:
        first, second = (make(causal, profile=PROFILES) for _ in range(2))
        assert self.played(first, 3) == self.played(second, 3) == self.played(second, 3)
        assert self.played(first, 3) != self.played(first, 5)

    def test_every_text_comes_before_any_comes_again(self, causal: Path) -> None:
        envs = make(causal, 2)
        _, info = envs.reset(seed=1)
        order, plain = info["text"].tolist(), np.zeros((2, 6), np.int64)
        while len(order) < 2 * len(envs.replays.texts):
            _, _, terminated, truncated, _ = envs.step(plain)
            order += envs.states.text[terminated | truncated].tolist()
        count = len(envs.replays.texts)
        assert sorted(order[:count]) == sorted(order[count : 2 * count]) == list(range(count))
        assert order[:count] != order[count : 2 * count]

    def test_machines_are_drawn_and_seen(self, causal: Path) -> None:
        envs = make(causal, 64, profile=[*FAMILIES])
        seen, info = envs.reset(seed=0)
        assert set(info["profile"]) == {0, 1, 2}
        machine = {tuple(row) for row in seen[:, -2:].tolist()}
        assert len(machine) >= 3

    def test_texts_and_machines_may_be_chosen(self, causal: Path) -> None:
        envs = make(causal, 3, profile=PROFILES)
        chosen = {"texts": np.array([5, 0, 5]), "profiles": np.array([2, 1, 0])}
        _, info = envs.reset(options=chosen)
        assert (info["text"].tolist(), info["profile"].tolist()) == ([5, 0, 5], [2, 1, 0])

    def test_split_and_temperature_choose_the_texts(self, causal: Path) -> None:
        every = make(causal, split=None).replays.texts
        cold = make(causal, split="train", temperature=0.0).replays.texts
        assert 0 < len(cold) < len(every)
        assert {(text.split, text.settings.temperature) for text in cold} == {("train", 0.0)}

    def test_the_price_of_time_changes_between_steps(self, causal: Path) -> None:
        envs, action = make(causal), np.zeros((3, 6), np.int64)
        envs.reset(seed=0)
        for lam in (1.0, 0.0, 2.0):
            envs.set_lam(lam)
            _, rewards, *_, info = envs.step(action)
            assert rewards.tolist() == (info["tokens"] - lam * info["plain_steps"]).tolist()
        with pytest.raises(ParameterError, match="lam must be 0 or a positive"):
            envs.set_lam(-1.0)

    def test_every_machine_and_way_of_decoding_may_have_a_price_of_its_own(self, causal: Path) -> None:
        envs, prices = make(causal, 24, profile=PROFILES), np.arange(6.0).reshape(3, 2)
        envs.set_lam(prices)
        _, info = envs.reset(seed=0)
        sampled = [not envs.replays.texts[text].settings.greedy for text in info["text"]]
        expected = prices[info["profile"], np.array(sampled, int)]
        assert set(expected) == set(range(6)), "the test would be vacuous"
        _, rewards, *_, after = envs.step(np.zeros((24, 6), np.int64))
        assert rewards.tolist() == (after["tokens"] - expected * after["plain_steps"]).tolist()

    @pytest.mark.parametrize(
        ("prices", "message"),
        [
            (np.ones(3), r"shape \(3, 2\), by latency profile .*; got one of shape \(3,\)"),
            (np.array([[1.0, 1.0], [1.0, 1.0], [1.0, np.inf]]), "lam must be 0 or a positive"),
        ],
    )
    def test_prices_that_cannot_be_are_refused(self, causal: Path, prices: np.ndarray, message: str) -> None:
        envs = make(causal, profile=PROFILES, lam=0.5)
        with pytest.raises(ParameterError, match=message):
            envs.set_lam(prices)
        assert envs.lam == 0.5

    def test_a_plain_round_is_worth_the_same_anywhere(self, causal: Path) -> None:
        envs, action = make(causal, profile=PROFILES[0], observes_draft=False), np.zeros((3, 6), np.int64)
        envs.reset(seed=0)
        for _ in range(30):
            assert envs.step(action)[1] == pytest.approx([0.0] * 3)
        envs = make(causal, profile=PROFILES[0])
        envs.reset(seed=0)
        assert (envs.step(action)[1] < 0).all(), "an observed draft is paid for"


class TestTables:
    def test_outcomes_are_computed_when_asked_for_or_tabulated_before(self, causal: Path) -> None:
        lazy, eager = make(causal), make(causal)
        told: list[tuple[int, int]] = []
        eager.tabulate_all(lambda done, every: told.append((done, every)))
        count = len(set(SMALL))
        assert told == [(done, count) for done in range(1, count + 1)]
        assert len(lazy.replays.table.index) == 1 < len(eager.replays.table.index)
        for envs in (lazy, eager):
            envs.reset(seed=2)
            envs.action_space.seed(1)
        for _ in range(10):
            actions = lazy.action_space.sample()
            one, other = lazy.step(actions), eager.step(actions)
            assert [part.tolist() for part in one[:4]] == [part.tolist() for part in other[:4]]

    def test_actions_that_mean_the_same_share_a_table(self, causal: Path) -> None:
        table = make(causal).replays.table
        plain = np.array([[0, 0, stop, deep, source, 0] for stop in (0, 1) for deep in (0, 1) for source in range(3)])
        assert len(set(table.choose(plain).tolist())) == 1
        assert len(table.choices) == len(set(SMALL)) == 1 + 2 * 2 * 2 * 3


class TestGymnasium:
    def test_it_is_made_by_its_name(self, causal: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            envs = gym.make_vec(
                "specgym/Replay-v0",
                num_envs=5,
                vectorization_mode="vector_entry_point",
                traces=str(causal),
                profile=["overhead_bound", "compute_bound"],
                split="train",
            )
            assert isinstance(envs.unwrapped, ReplayVectorEnv)
            assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
            seen, _ = envs.reset(seed=0)
            assert seen in envs.observation_space
            seen, rewards, terminated, truncated, _ = envs.step(envs.action_space.sample())
        assert seen in envs.observation_space
        assert seen.shape == (5, len(FEATURES))
        assert rewards.shape == terminated.shape == truncated.shape == (5,)

    def test_without_a_mode_this_form_is_taken(self, causal: Path) -> None:
        envs = gym.make_vec("specgym/Replay-v0", num_envs=2, traces=causal, split=None)
        assert isinstance(envs.unwrapped, ReplayVectorEnv)


def forms(info: dict[str, Any], below: str = "") -> dict[str, tuple[str, Any]]:
    """The type of each entry of an info, and its shape."""
    found: dict[str, tuple[str, Any]] = {}
    for name, value in info.items():
        if isinstance(value, dict):
            found |= forms(value, f"{below}{name}.")
        else:
            found[below + name] = str(value.dtype), value.shape
    return found


class TestInfos:
    def play(self, envs: Any, steps: int = 60) -> list[dict[str, Any]]:
        """The infos of steps in which an episode ended."""
        envs.reset(seed=0)
        envs.action_space.seed(0)
        played = [envs.step(envs.action_space.sample()) for _ in range(steps)]
        return [step[4] | {"ended": step[2] | step[3]} for step in played if (step[2] | step[3]).any()]

    def test_the_end_of_an_episode_has_gymnasiums_form(self, causal: Path) -> None:
        statistics = gym.wrappers.RecordEpisodeStatistics
        theirs = gym.make_vec(
            "specgym/Replay-v0",
            num_envs=3,
            vectorization_mode="sync",
            wrappers=(statistics,),
            vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
            traces=str(causal),
            split=None,
            grid=SMALL,
        )
        found, expected = (forms(self.play(envs)[0]) for envs in (make(causal), theirs))
        names = ("final_obs", "final_info.tokens", "final_info.depth", "final_info.episode.r", "final_info.episode.l")
        masks = [f"{head}{dot}_{name}" for head, dot, name in (each.rpartition(".") for each in names)]
        for name in (*names, *masks, "_final_info", "final_info._episode"):
            assert found[name] == expected[name], name
        assert all(name.rpartition(".")[2].startswith("_") or _mask(name) in found for name in found if name != "ended")

    def test_they_say_which_episodes_ended(self, causal: Path) -> None:
        for info in self.play(make(causal)):
            ended = info["ended"]
            assert [last is None for last in info["final_obs"]] == (~ended).tolist()
            assert np.array_equal(info["_final_obs"], ended)
            assert np.array_equal(info["final_info"]["episode"]["l"] > 0, ended)
            assert np.array_equal(info["final_info"]["tokens"], np.where(ended, info["tokens"], 0))

    def test_in_the_next_step_mode_the_next_episode_waits_for_a_step(self, causal: Path) -> None:
        envs = make(causal, autoreset_mode=AutoresetMode.NEXT_STEP)
        assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        seen, _ = envs.reset(seed=0)
        envs.action_space.seed(0)
        waiting, ends, tokens = np.zeros(3, np.bool_), 0, np.zeros(3)
        for _ in range(60):
            seen, rewards, terminated, truncated, info = envs.step(envs.action_space.sample())
            assert not any(values[waiting].any() for values in (rewards, terminated, truncated))
            assert np.array_equal(info["_tokens"], ~waiting)
            assert not {"final_obs", "final_info", "episode"} & info.keys()
            assert (seen[waiting, FEATURE["rounds"]] == 0).all()
            tokens = np.where(waiting, 0, tokens + info["tokens"])
            waiting = terminated | truncated
            for index in np.flatnonzero(waiting):
                text = envs.replays.texts[info["text"][index]]
                assert tokens[index] == len(text.tokens) - text.prompt - 1
            ends += waiting.sum()
        assert ends > 4, "the test would be vacuous"

    @pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
    def test_gymnasiums_statistics_are_the_same(self, causal: Path, mode: AutoresetMode) -> None:
        envs: Any = gym.wrappers.vector.RecordEpisodeStatistics(make(causal, autoreset_mode=mode))
        for info in self.play(envs):
            if mode is AutoresetMode.SAME_STEP:
                own = info["final_info"]["episode"]
                assert info["episode"]["l"].tolist() == own["l"].tolist()
                assert info["episode"]["r"] == pytest.approx(own["r"])
            assert (info["episode"]["l"] > 0).tolist() == info["ended"].tolist()


FEATURE = {feature.name: index for index, feature in enumerate(FEATURES)}


def _mask(name: str) -> str:
    head, dot, last = name.rpartition(".")
    return f"{head}{dot}_{last}"


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"num_envs": 0}, LimitError, "num_envs must be 1 or more; got 0"),
            ({"lam": float("nan")}, ParameterError, "lam must be 0 or a positive"),
            ({"autoreset_mode": AutoresetMode.DISABLED}, ParameterError, "SAME_STEP or NEXT_STEP; got .*DISABLED"),
            ({"profile": []}, ParameterError, "one latency profile or more; got an empty list"),
            ({"profile": ["overhead_bound", "compute_bond"]}, UnknownNameError, "Did you mean compute_bound"),
            ({"split": "tests"}, UnknownNameError, r"split 'tests'. Did you mean test\?"),
            ({"temperature": 0.3}, TraceError, "split=None, temperature=0.3 .*train at 1"),
            ({"grid": ParameterGrid(branch=(5,))}, ParameterError, "at most 4 children; the grid has trees of 5"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, causal: Path, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            make(causal, **options)

    def test_a_step_needs_a_reset(self, causal: Path) -> None:
        envs = make(causal)
        with pytest.raises(ResetNeeded, match=r"call reset\(\) before step"):
            envs.step(np.zeros((3, 6), np.int64))

    @pytest.mark.parametrize(
        ("actions", "message"),
        [
            (np.zeros((2, 6), np.int64), r"Expected actions of shape \(3, 6\), one for each episode; got \(2, 6\)"),
            (np.zeros((3, 6)), "an action of 6 integers"),
            (np.array([[0] * 6, [0] * 6, [3, 0, 0, 0, 0, 0]]), "index of base_depth within 0 and 2; got 3"),
            (np.array([[0] * 6, [0, 0, -1, 0, 0, 0], [0] * 6]), "index of early_stop within 0 and 1; got -1"),
        ],
    )
    def test_an_action_off_the_grid_plays_no_round(self, causal: Path, actions: np.ndarray, message: str) -> None:
        envs = make(causal)
        envs.reset(seed=0)
        place = envs.states.place.tolist()
        with pytest.raises(ParameterError, match=message):
            envs.step(actions)
        assert envs.states.place.tolist() == place

    def test_a_tree_that_was_not_recorded_plays_no_round(self, causal: Path) -> None:
        wide = dataclasses.replace(SMALL, early_stop=(0.05, 0.0), base=TreeParameters(8, 8, frontier_width=60))
        envs = make(causal, grid=dataclasses.replace(wide, base_depth=(0, 8)))
        envs.reset(seed=0)
        place = envs.states.place.tolist()
        with pytest.raises(UnrecordedError, match="Ask for a tree within the recorded ones"):
            envs.step(np.tile([1, 0, 1, 0, 0, 0], (3, 1)))
        assert envs.states.place.tolist() == place
        assert envs.step(np.tile([1, 0, 0, 0, 0, 0], (3, 1)))[4]["tokens"].min() > 0

    def test_a_round_that_the_profile_does_not_know_plays_no_round(self, causal: Path) -> None:
        envs = make(causal, profile=LatencyProfile(bent(0.01, 5), bent(0.01, 5)))
        envs.reset(seed=0)
        place = envs.states.place.tolist()
        for _ in range(2):
            with pytest.raises(UnmeasuredError, match="the cost of 1 to 5 verified rows"):
                envs.step(np.tile([2, 0, 0, 0, 0, 0], (3, 1)))
        assert envs.states.place.tolist() == place

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"text": [0, 0, 0]}, UnknownNameError, "Did you mean texts"),
            ({"texts": [0, 0]}, ParameterError, r"texts as 3 numbers within 0 and \d+; got \[0, 0\]"),
            ({"profiles": [0, 0, 1]}, ParameterError, "profiles as 3 numbers within 0 and 0"),
        ],
    )
    def test_an_option_of_reset_that_cannot_be_is_refused(
        self, causal: Path, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            make(causal).reset(options=options)

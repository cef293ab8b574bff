"""What learners see and choose: hidden groups, held-out machines, corrections of goodput, and hindsight."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from specgym.agents.learning.algorithms import model_act
from specgym.agents.learning.config import LearningConfig, LearningPlan
from specgym.agents.learning.setup import TrainingSetup
from specgym.agents.policies.action_forms import make_form
from specgym.agents.policies.corrections import Corrections, PriceGrid, base_price
from specgym.agents.policies.observation_groups import GROUPS, columns_of
from specgym.agents.policies.policy_controller import PolicyController, find_policy
from specgym.agents.policies.policy_file import WEIGHTS, Architecture, Policy, PolicyError, load_policy, save_policy
from specgym.agents.policies.policy_network import expected_shapes
from specgym.agents.study.playing import play_policies
from specgym.controllers.evaluation.ladder.replayed import LadderEvaluation
from specgym.controllers.rules.goodput import GoodputController
from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import ParameterError, UnknownNameError
from specgym.env.gym.features import FEATURES, feature_vector
from specgym.env.gym.grid import ParameterGrid
from specgym.env.replay.sources import choose_texts, find_profile, find_trace
from specgym.env.replay.traces.file import Trace
from specgym.env.tree.observation import ROW_PRIOR, Observation
from specgym.env.tree.parameters import PLAIN, TreeParameters
from tests.agents.learning.test_learning import Interrupt
from tests.agents.policies.test_policies import observations
from tests.support.tiny_trace import save_tiny_world

CONFIG = LearningConfig(episodes=32, rounds=4, minibatch=64, learning_rate=5e-3, hidden=(16,))
PLAN = LearningPlan(algorithm="hindsight", form="corrections", steps=32 * 4 * 24, looks=3, config=CONFIG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_world(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def room(folder: Path) -> TrainingSetup:
    return classroom(folder, PLAN)


def classroom(folder: Path, plan: LearningPlan, held_out: tuple[str, ...] = ()) -> TrainingSetup:
    profiles = [str(folder / "dear.json"), str(folder / "cheap.json")]
    return TrainingSetup([folder / "tiny.sgt"], profiles, plan, held_out=held_out)


def correcting(seed: int = 3) -> Policy:
    rng = np.random.default_rng(seed)
    shapes = expected_shapes(len(FEATURES), 0, (8,), int(Corrections.nvec.sum()))
    weights = {name: rng.normal(scale=0.7, size=shape).astype(np.float32) for name, shape in shapes.items()}
    return Policy(PriceGrid(base_depth=(0, 6)), "corrections", False, Architecture((8,)), weights)


def act(grid: PriceGrid, choices: IntArray, seen: Observation) -> TreeParameters:
    corrections = Corrections(grid)
    return grid.parameters(corrections.move(corrections.first, choices, feature_vector(seen)))


class TestGroups:
    def test_every_feature_is_in_one_group(self) -> None:
        names = [name for group in GROUPS.values() for name in group]
        assert sorted(names) == sorted(feature.name for feature in FEATURES)
        assert columns_of(list(GROUPS)).tolist() == list(range(len(FEATURES)))

    def test_an_unknown_one_is_refused(self) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean history"):
            LearningPlan(blind=("histroy",))

    def test_a_blind_policy_goes_by_nothing_that_is_hidden(self, folder: Path, tmp_path: Path) -> None:
        grid = dataclasses.replace(
            LearningPlan().grid, base_depth=(0, 1, 2, 4), base=LearningPlan().grid.base.capped(6)
        )
        plan = LearningPlan(steps=128, looks=1, grid=grid, blind=("history", "lookup"), config=CONFIG)
        room = classroom(folder, plan)
        hidden = columns_of(plan.blind)
        assert not room.envs.reset()[:, hidden].any()
        room.learner(0, tmp_path).run()
        policy = load_policy(tmp_path)
        assert not policy.weights["hidden.0.weight"][:, hidden].any()
        controller, seen = PolicyController(policy), observations(1)[0]
        other = dataclasses.replace(seen, recent=(), lookup_match=0, lookup_rate=0.0)
        assert (feature_vector(seen) != feature_vector(other)).any(), "the test would be vacuous"
        assert controller.act(seen) == controller.act(other)


class TestMachines:
    def test_one_that_is_held_out_is_judged_on_and_never_learned_on(self, folder: Path, tmp_path: Path) -> None:
        room = classroom(folder, PLAN, held_out=("dear",))
        room.envs.reset()
        for _ in range(30):
            room.envs.step(np.zeros((room.envs.num_envs, 1), np.int64))
            assert (room.envs.told["profile"] == 1).all()
        learner = room.learner(0, tmp_path)
        look = learner.run().looks[-1]
        assert set(look.throughput) == {"dear", "cheap"}
        assert look.score == pytest.approx(look.throughput["cheap"])
        assert look.lam["dear"] == [1.0, 1.0]

    def test_drawn_ones_are_learned_on_beside_the_named_and_never_judged_on(self, folder: Path, tmp_path: Path) -> None:
        room = classroom(folder, dataclasses.replace(PLAN, drawn_machines=2), held_out=("dear",))
        played = set()
        room.envs.reset()
        for _ in range(30):
            room.envs.step(np.zeros((room.envs.num_envs, 1), np.int64))
            played |= set(room.envs.told["profile"].tolist())
        assert played == {1, 2, 3}
        learner = room.learner(0, tmp_path)
        look = learner.run().looks[-1]
        assert set(look.throughput) == {"dear", "cheap"}
        assert set(look.lam) == {"dear", "cheap", "drawn 0", "drawn 1"}
        assert learner.policy().training["profiles"] == ["cheap", "drawn 0", "drawn 1"]

    @pytest.mark.parametrize(
        ("held_out", "error", "message"),
        [
            (("daer",), UnknownNameError, "Did you mean dear"),
            (("dear", "cheap"), ParameterError, "all of them are held out"),
        ],
    )
    def test_what_cannot_be_held_out_is_refused(
        self, folder: Path, held_out: tuple[str, ...], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            classroom(folder, PLAN, held_out)


class TestCorrections:
    @pytest.mark.parametrize("greedy", [True, False])
    @pytest.mark.parametrize(("level", "row"), [(0.1, 0.001), (0.15, 0.04), (0.1, 0.06), (0.02, 0.02), (0.0, 0.0)])
    def test_none_is_goodput_at_the_price_of_the_machine(self, level: float, row: float, greedy: bool) -> None:
        seen = Observation(10, 2, 20, level_cost=level, row_cost=row, greedy=greedy)
        grid = PriceGrid()
        found = act(grid, Corrections.unmoved, seen)
        wanted = GoodputController(price=base_price(row or ROW_PRIOR, 0.0 if greedy else 1.0), source="both").act(seen)
        assert wanted.source == "both", "the test would be vacuous"
        assert (found.source, found.max_depth, found.node_budget) == ("both", wanted.max_depth, 31)
        for name, values in (("min_reach", grid.early_stop), ("min_level_reach", grid.high_confidence)):
            nearest = min(values, key=lambda value, name=name: abs(np.log((value or 0.02) / getattr(wanted, name))))
            around = values.index(nearest)
            assert getattr(found, name) in values[max(around - 1, 0) : around + 2]

    def test_a_plain_step_is_worth_less_where_rows_are_dear_and_never_less_than_its_token(self) -> None:
        for sampling in (0.0, 1.0):
            prices = [base_price(row, sampling) for row in (0.0, 0.03, 0.1, 0.3, 100.0)]
            assert prices == sorted(prices, reverse=True)
            assert prices[-1] == pytest.approx(1, abs=0.01)
        assert base_price(0.03, 0.0) > base_price(0.03, 1.0)

    @pytest.mark.parametrize(("level", "row"), [(0.3, 0.12), (0.3, 0.22), (0.02, 0.6)])
    def test_where_the_draft_model_cannot_pay_lookup_stands_for_it(self, level: float, row: float) -> None:
        seen = Observation(10, 2, 20, level_cost=level, row_cost=row)
        alone = GoodputController(price=base_price(row, 0.0), source="model").act(seen)
        assert not alone.speculates, "the test would be vacuous"
        every = [act(PriceGrid(), np.array([choice]), seen) for choice in range(Corrections.nvec[0])]
        assert {found.source for found in every if found.speculates} == {"lookup"}

    def test_one_observation_alone_is_answered_as_among_many(self) -> None:
        rng, corrections = np.random.default_rng(0), Corrections(PriceGrid())
        seen = np.array([feature_vector(each) for each in observations(300)])
        machine = [FEATURES.index(each) for each in FEATURES if each.name in ("level_cost", "row_cost")]
        seen[:, machine] = rng.choice([0, 0.02, 0.2, 0.3, 0.45, 0.6, 1], (len(seen), 2))
        choices = rng.integers(Corrections.nvec[0], size=(len(seen), 1))
        current = np.tile(corrections.first, (len(seen), 1))
        together = corrections.move(current, choices, seen)
        alone = [corrections.move(*each) for each in zip(current, choices, seen, strict=True)]
        assert together.tolist() == [found.tolist() for found in alone]
        assert len({tuple(found) for found in together.tolist()}) > 50, "the test would be vacuous"

    def test_a_step_moves_one_value_and_stays_on_the_scale(self) -> None:
        grid, seen = PriceGrid(), Observation(10, 2, 20, level_cost=0.15, row_cost=0.04)
        every = [act(grid, np.array([choice]), seen) for choice in range(Corrections.nvec[0])]
        both = [found for found in every if found.source == "both"]
        rows = [found.min_reach for found in both]
        assert rows == sorted(rows)
        assert len(set(rows)) >= 5
        assert len({found.min_level_reach for found in both}) >= 4
        assert act(grid, np.array([0]), seen) == PLAIN
        assert act(grid, np.array([1]), seen).source == "lookup"


class TestHindsight:
    @pytest.mark.parametrize("form", ["corrections", "absolute"])
    def test_it_knows_what_every_choice_brings(self, folder: Path, form: str) -> None:
        """What it says of a choice is the reward if that choice is made, at every step on the way."""
        grid = dataclasses.replace(
            LearningPlan().grid, base_depth=(0, 2, 4), early_stop=(0.1,), base=LearningPlan().grid.base.capped(6)
        )
        plan = dataclasses.replace(PLAN, form=form, grid=grid)
        room, rng = classroom(folder, plan), np.random.default_rng(0)
        envs = room.envs
        envs.set_lam(np.array([[0.5, 0.7], [1.5, 1.9]]))
        envs.reset()
        told = set()
        for _ in range(30):
            gains = envs.gains()
            chosen = rng.integers(len(envs.every), size=envs.num_envs)
            _, rewards, _, _ = envs.step(envs.every[chosen])
            np.testing.assert_allclose(gains[np.arange(envs.num_envs), chosen], rewards, atol=1e-5)
            told |= set(np.round(rewards, 3).tolist())
        assert len(told) > 20, "the test would be vacuous"

    def test_it_learns_where_trees_pay(self, folder: Path, tmp_path: Path) -> None:
        config = dataclasses.replace(CONFIG, epochs=8, learning_rate=1e-2)
        long = dataclasses.replace(PLAN, steps=3 * PLAN.steps, config=config)
        room = classroom(folder, long)
        learner = room.learner(0, tmp_path)
        before = room.validation(model_act(learner.model)).by_profile()
        learner.run()
        after = room.validation(model_act(learner.model)).by_profile()
        assert before[0] < 0.98, "the test would be vacuous"
        assert after[0] > 0.99, "plain decoding, where every row costs a step"
        assert after[1] > 1.15 * before[1], "large trees, where they cost nothing"

    def test_a_run_that_goes_on_ends_with_the_same_policy(self, room: TrainingSetup, tmp_path: Path) -> None:
        whole = room.learner(1, tmp_path / "whole").run()
        with pytest.raises(KeyboardInterrupt):
            room.learner(1, tmp_path / "parts").run(Interrupt(40))
        assert 0 < room.learner(1, tmp_path / "parts").done < PLAN.looks, "the test would be vacuous"
        again = room.learner(1, tmp_path / "parts").run()
        assert [look.throughput for look in again.looks] == [look.throughput for look in whole.looks]
        files = [(tmp_path / each / WEIGHTS).read_bytes() for each in ("whole", "parts")]
        assert files[0] == files[1]


class TestFile:
    def test_what_was_saved_is_found_and_acts_the_same(self, tmp_path: Path) -> None:
        policy = correcting()
        save_policy(policy, tmp_path)
        found = find_policy(str(tmp_path))
        assert found is not None
        assert found.policy.grid == policy.grid
        expected = [PolicyController(policy).act(seen) for seen in observations()]
        assert len(set(expected)) > 3, "the test would be vacuous"
        assert [found.act(seen) for seen in observations()] == expected

    def test_prices_that_no_grid_has_are_refused(self, tmp_path: Path) -> None:
        path = save_policy(correcting(), tmp_path)
        record = json.loads(path.read_text())
        del record["action"]["grid"]["floor"]
        path.write_text(json.dumps(record))
        with pytest.raises(PolicyError, match="none of floor"):
            load_policy(tmp_path)

    def test_corrections_need_a_grid_of_prices(self) -> None:
        with pytest.raises(ParameterError, match="choose from a PriceGrid; got a ParameterGrid"):
            make_form("corrections", ParameterGrid())


class TestPlaying:
    def test_rows_are_those_of_one_text_at_a_time(self, folder: Path, tmp_path: Path) -> None:
        """Judged together, a policy takes for every text what it takes as a controller that steers a replay."""
        trace = find_trace([folder / "tiny.sgt"])
        profiles = {name: find_profile(str(folder / f"{name}.json")) for name in ("dear", "cheap")}
        policy = correcting(seed=5)
        save_policy(policy, tmp_path)
        compared = drafted = 0
        for temperature in (0.0, 1.0):
            texts = choose_texts(trace.texts, "train", temperature)
            part = Trace(trace.path, trace.header, texts)
            rows = play_policies([policy], [str(tmp_path)], part, profiles, "train")
            for name, profile in profiles.items():
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr("specgym.controllers.registry._FINDERS", [find_policy])
                    alone = LadderEvaluation(texts, trace.header).controller(str(tmp_path), profile)
                together = {row.prompt_id: row for row in rows[name]}
                for row in alone:
                    other = together[row.prompt_id]
                    assert dataclasses.replace(other, seconds=row.seconds) == row
                    assert other.seconds == pytest.approx(row.seconds)
                    compared, drafted = compared + 1, drafted + row.drafted
        assert compared >= 8
        assert drafted > 0, "the test would be vacuous"

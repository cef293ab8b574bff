"""Policy files are loaded exactly or refused, and policies run as controllers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specgym.agents.policies import policy_hub as hub
from specgym.agents.policies.policy_controller import (
    SHIPPED,
    PolicyController,
    find_policy,
    register_policies,
    register_shipped,
)
from specgym.agents.policies.policy_file import SETTINGS, WEIGHTS, PolicyError, load_policy, save_policy
from specgym.controllers import registry
from specgym.controllers.controller import Controller
from specgym.controllers.registry import controller_names, make_controller
from specgym.controllers.run import run
from specgym.env.common.errors import ParameterError, UnknownNameError
from specgym.env.gym.features import VERSION
from specgym.env.gym.grid import ParameterGrid
from specgym.env.replay.decoder import ReplayDecoder
from specgym.env.replay.sources import find_profile, find_trace, text_request
from tests.support.policies import GRID, observations, random_policy
from tests.support.tiny_trace import save_tiny_trace

CHOICES = Path(__file__).parents[2] / "support" / "shipped_policy_choices.json"
LEVEL_COSTS, ROW_COSTS = (0, 0.05, 0.1, 0.2), (0, 0.005, 0.02, 0.05, 0.1, 0.3)


def chosen(controller: Controller) -> list[Any]:
    controller.reset()
    return [controller.act(observation) for observation in observations()]


class TestFile:
    @pytest.mark.parametrize("form", ["absolute", "increments"])
    @pytest.mark.parametrize("memory", [0, 5])
    def test_a_saved_policy_is_loaded_and_acts_the_same(self, tmp_path: Path, form: str, memory: int) -> None:
        policy = random_policy(form, memory)
        loaded = load_policy(save_policy(policy, tmp_path / "policy"))
        assert dataclasses.replace(loaded, weights=policy.weights) == policy
        expected = chosen(PolicyController(policy))
        assert len(set(expected)) > 1, "the test would be vacuous"
        assert chosen(PolicyController(loaded)) == expected
        assert {path.name for path in (tmp_path / "policy").iterdir()} == {SETTINGS, WEIGHTS}

    def test_changed_weights_are_refused(self, tmp_path: Path) -> None:
        path = save_policy(random_policy(), tmp_path)
        weights = bytearray((tmp_path / WEIGHTS).read_bytes())
        weights[-1] ^= 1
        (tmp_path / WEIGHTS).write_bytes(weights)
        with pytest.raises(PolicyError, match=r"not those that it was saved with: expected sha256 \w{64}, got \w{64}"):
            load_policy(path)

    def test_the_weights_of_another_policy_are_refused(self, tmp_path: Path) -> None:
        save_policy(random_policy(), tmp_path)
        other = save_policy(random_policy(grid=ParameterGrid(branch=(0,))), tmp_path / "other").with_name(WEIGHTS)
        record = json.loads((tmp_path / SETTINGS).read_text())
        (tmp_path / WEIGHTS).write_bytes(other.read_bytes())
        with pytest.raises(PolicyError, match="sha256"):
            load_policy(tmp_path)
        record["sha256"] = hashlib.sha256(other.read_bytes()).hexdigest()
        (tmp_path / SETTINGS).write_text(json.dumps(record))
        with pytest.raises(PolicyError, match=r"Expected the tensors .*'heads.bias': \(11,\).*; got .*\(33,\)"):
            load_policy(tmp_path)

    def test_another_grid_is_refused_and_the_difference_is_shown(self, tmp_path: Path) -> None:
        path, wanted = save_policy(random_policy(), tmp_path), dataclasses.replace(GRID, early_stop=(0.3,))
        assert load_policy(path, GRID).grid == GRID
        with pytest.raises(PolicyError, match="for another grid") as refused:
            load_policy(path, wanted)
        assert 'Expected {"early_stop": [0.3]}, got\n{"early_stop": [0.1]}' in str(refused.value)

    def edited(self, folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
        path = save_policy(random_policy(), folder)
        record = json.loads(path.read_text())
        edit(record)
        path.write_text(json.dumps(record))
        return path

    def test_another_version_of_the_observation_is_refused_and_the_difference_is_shown(self, tmp_path: Path) -> None:
        path = self.edited(tmp_path, lambda record: record["observation"].update(version=VERSION + 1))
        with pytest.raises(PolicyError, match="for another observation") as refused:
            load_policy(path)
        assert f'Expected {{"version": {VERSION}}}, got\n{{"version": {VERSION + 1}}}' in str(refused.value)

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda record: record.update(format="specgym policy 0"), "expected 'specgym policy 1', got 'specgym poli"),
            (lambda record: record["observation"]["names"].reverse(), "for another observation"),
            (lambda record: record["observation"].update(observes_draft="yes"), "for another observation"),
            (lambda record: record["action"].update(form="increment"), "Did you mean increments"),
            (lambda record: record["action"]["grid"].update(base_depht=[1]), "Did you mean base_depth"),
            (lambda record: record["action"]["grid"].pop("branch"), "got none of branch"),
            (lambda record: record["architecture"].update(hidden=[8]), "Expected the tensors"),
            (lambda record: record["architecture"].update(memory=1 << 40), "at most 4096 units"),
            (lambda record: record["architecture"].update(hidden=7), "corrupt or of another version"),
            (lambda record: record.pop("training"), "expected the keys format, observation"),
        ],
    )
    def test_an_invalid_record_is_refused(
        self, tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
    ) -> None:
        with pytest.raises(PolicyError, match=message) as refused:
            load_policy(self.edited(tmp_path, edit))
        assert str(tmp_path) in str(refused.value)

    def test_a_missing_or_corrupt_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(PolicyError, match=r"no policy to read at .*policy.json \(No such file"):
            load_policy(tmp_path)
        (tmp_path / SETTINGS).write_text("{")
        with pytest.raises(PolicyError, match="expected JSON"):
            load_policy(tmp_path)
        (tmp_path / SETTINGS).write_text("[]")
        with pytest.raises(PolicyError, match="got 'list'"):
            load_policy(tmp_path)
        save_policy(random_policy(), tmp_path)
        (tmp_path / WEIGHTS).unlink()
        with pytest.raises(PolicyError, match="weights cannot be read"):
            load_policy(tmp_path)

    def test_weights_that_are_not_finite_are_refused(self) -> None:
        policy = random_policy()
        broken = dict(policy.weights) | {"heads.bias": np.full_like(policy.weights["heads.bias"], np.nan)}
        with pytest.raises(PolicyError, match=r"finite numbers of float32 in heads.bias"):
            dataclasses.replace(policy, weights=broken)


class TestController:
    def test_it_steers_a_replay(self, tmp_path: Path) -> None:
        trace = find_trace(save_tiny_trace(tmp_path / "tiny.sgt"))
        controller = PolicyController(random_policy("increments", 4))
        assert isinstance(controller, Controller)
        decoder = ReplayDecoder(trace.texts, trace.header, find_profile())
        for text in trace.texts[:3]:
            assert run(decoder, controller, text_request(text)).tokens == list(text.tokens[text.prompt :])

    def test_a_reset_forgets_the_last_request(self) -> None:
        controller = PolicyController(random_policy("increments", 4))
        assert chosen(controller) == chosen(controller)

    def test_increments_start_from_the_last_action(self) -> None:
        policy = random_policy("increments")
        bias = np.array([0, 0, 9, 0, 9, 0], np.float32)  # deeper, as confident
        always = {name: np.zeros_like(tensor) for name, tensor in policy.weights.items()} | {"heads.bias": bias}
        grid = ParameterGrid(branch=(0,))
        policy = dataclasses.replace(random_policy("increments", grid=grid), weights=always)
        depths = [parameters.base_depth for parameters in chosen(PolicyController(policy))[:8]]
        assert depths == [5, 6, 7, 8, 9, 10, 10, 10]

    def test_it_is_found_by_its_file(self, tmp_path: Path) -> None:
        path = save_policy(random_policy(), tmp_path / "mine")
        for specification in (path, path.parent):
            found = find_policy(str(specification))
            assert found is not None
            assert chosen(found) == chosen(PolicyController(random_policy()))
        assert find_policy("history") is None
        with pytest.raises(PolicyError, match=r"no policy to read at .*none.json"):
            find_policy(str(tmp_path / "none.json"))

    def test_the_registry_finds_it_by_name_and_by_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        controller_names()  # what is found only once shall not be lost with the copy
        monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
        monkeypatch.setattr(registry, "_FINDERS", [])
        path = save_policy(random_policy(), tmp_path / "tiny_ppo")
        register_policies(tmp_path)
        assert "tiny_ppo" in controller_names()
        expected = chosen(PolicyController(random_policy()))
        assert chosen(make_controller("tiny_ppo")) == chosen(make_controller(str(path))) == expected
        with pytest.raises(UnknownNameError, match="Did you mean tiny_ppo"):
            make_controller("tiny_pp")

    def test_the_registry_registers_shipped_policies_by_entry_point(self) -> None:
        (entry,) = entry_points(group="specgym.controllers")
        assert entry.load() is register_shipped


class TestShipped:
    @pytest.mark.parametrize("name", ["ppo", "corrections"])
    def test_it_has_a_name_and_speculates_where_that_pays(self, name: str) -> None:
        assert name in controller_names()
        chosen = {}
        for machine, (level, row) in {"cheap": (0.1, 0.001), "dear": (0.1, 0.3)}.items():  # as some that it learned on
            controller = make_controller(name)
            controller.reset()
            changes = {"level_cost": level, "row_cost": row, "greedy": False, "lookup_match": 0, "lookup_rate": 0.0}
            seen = [dataclasses.replace(each, **changes) for each in observations(100)]
            chosen[machine] = [controller.act(each) for each in seen]
        drafting = {
            machine: sum(each.speculates and each.source != "lookup" for each in found)
            for machine, found in chosen.items()
        }
        assert drafting["cheap"] > 90
        assert drafting["dear"] < 50

    @pytest.mark.parametrize("name", ["ppo", "corrections"])
    def test_it_chooses_what_it_chose_when_it_was_trained(self, name: str) -> None:
        """Source and thresholds of 100 choices are those of the version that trained it; None is plain decoding."""
        expected = json.loads(CHOICES.read_text())[name]
        rng, controller = np.random.default_rng(2), make_controller(name)
        costs = zip(rng.choice(LEVEL_COSTS, 100).tolist(), rng.choice(ROW_COSTS, 100).tolist(), strict=True)
        controller.reset()
        actual = []
        for observation, (level, row) in zip(observations(100), costs, strict=True):
            chosen = controller.act(dataclasses.replace(observation, level_cost=level, row_cost=row))
            source = chosen.source if chosen.speculates else None
            actual.append([source, chosen.min_reach, chosen.min_level_reach])
        assert actual == expected
        assert len({tuple(choice) for choice in expected}) > 10, "the test would be vacuous"

    @pytest.mark.parametrize("name", ["ppo", "corrections"])
    def test_it_is_written_as_it_was_read(self, tmp_path: Path, name: str) -> None:
        save_policy(load_policy(SHIPPED / name), tmp_path)
        for file in (SETTINGS, WEIGHTS):
            assert (tmp_path / file).read_bytes() == (SHIPPED / name / file).read_bytes()

    def test_running_one_imports_no_learning_library(self) -> None:
        code = "import sys, specgym.agents.policies.policy_controller as p; p.register_shipped(); print(*sys.modules)"
        modules = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
        assert "specgym.agents.policies.action_forms" in modules, "the test would be vacuous"
        assert not {"torch", "transformers", "stable_baselines3"} & set(modules)


class TestHub:
    @pytest.mark.parametrize("name", ["mine", "a/b/c", "../x y"])
    def test_an_invalid_name_is_refused(self, tmp_path: Path, name: str) -> None:
        for call in (hub.fetch_policy, hub.check_pushable, lambda name: hub.push_policy(tmp_path, name)):
            with pytest.raises(ParameterError, match="owner/name; got"):
                call(name)

    def test_an_invalid_policy_is_not_pushed(self, tmp_path: Path) -> None:
        with pytest.raises(PolicyError, match="no policy to read"):
            hub.push_policy(tmp_path, "owner/name")

    def test_both_files_are_pushed_and_fetched(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A folder stands in for the hub."""
        there = tmp_path / "hub"

        class Api:
            def create_repo(self, name: str, exist_ok: bool) -> None:
                (there / name).mkdir(parents=True, exist_ok=exist_ok)

            def upload_folder(self, repo_id: str, folder_path: Path, allow_patterns: list[str]) -> Path:
                for file in allow_patterns:
                    (there / repo_id / file).write_bytes((folder_path / file).read_bytes())
                return there / repo_id

        monkeypatch.setattr(hub.huggingface_hub, "HfApi", Api)
        monkeypatch.setattr(
            hub.huggingface_hub, "hf_hub_download", lambda name, file, etag_timeout: str(there / name / file)
        )
        save_policy(random_policy(), tmp_path / "mine")
        hub.push_policy(tmp_path / "mine", "owner/name")
        found = find_policy("hub:owner/name")
        assert found is not None
        assert chosen(found) == chosen(PolicyController(random_policy()))

    def test_an_unreachable_hub_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*arguments: object, **options: object) -> None:
            raise OSError("no route to host")

        monkeypatch.setattr(hub.huggingface_hub, "hf_hub_download", fail)
        with pytest.raises(PolicyError, match=r"for owner/name failed \(no route to host\)"):
            hub.fetch_policy("owner/name")

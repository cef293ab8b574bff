"""A draft learns, and ends with the same weights however often its training is interrupted."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest
import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from specgym.agents.distillation.data.corpus import LabelledText
from specgym.agents.distillation.data.teacher import DeviceDataset, Teacher
from specgym.agents.distillation.distillation_config import CausalShape, FeatureShape, TrainingConfig
from specgym.agents.distillation.examination.agreement import measure_agreement
from specgym.agents.distillation.model.draft_shapes import new_causal, new_network
from specgym.agents.distillation.model.students import CausalStudent, FeatureStudent, Student
from specgym.agents.distillation.training.captured import CapturedTrainer
from specgym.agents.distillation.training.trainer import History, Trainer
from specgym.env.common.errors import LimitError, ModelFileError, ParameterError
from tests.support.distilling import label_random_texts
from tests.support.tiny_models import VOCABULARY, tiny_llama

KINDS = ("feature", "causal")
MODES = (*KINDS, "dataset")
"""the kinds of draft, and a feature draft that fuses layers and learns from a dataset on the device"""
CONFIG = TrainingConfig(epochs=2, batch_tokens=32, learning_rate=5e-3, evaluations=3)


@pytest.fixture(scope="module")
def target() -> PreTrainedModel:
    return tiny_llama(dtype=torch.float32)


@pytest.fixture(scope="module")
def texts(target: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> list[LabelledText]:
    return label_random_texts(target, range(10, 17), tmp_path_factory.mktemp("texts"))


def make_student(kind: str, target: PreTrainedModel, seed: int = 0) -> Student:
    """Returns a small draft whose weights are a function of the seed."""
    tokens = torch.arange(VOCABULARY)
    if kind == "dataset":
        network = new_network(target, tokens, FeatureShape(feature_layers=(0,)), seed)
        return FeatureStudent(network, target.get_input_embeddings(), 3, torch.tensor([4.0] * 32 + [1.0] * 32))
    if kind == "feature":
        return FeatureStudent(new_network(target, tokens, FeatureShape(), seed), target.get_input_embeddings(), 3)
    shape = CausalShape(hidden_size=24, layers=2, heads=2, intermediate_size=48)
    return CausalStudent(new_causal(target, tokens, shape, seed), tokens[:20], 6, seed=0)


def evaluate() -> list[float]:
    return [0.5]


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def _handler() -> None:
    """Sets Python's own handler of Ctrl-C, which a shell's background jobs lack."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def at(update: int, do: Callable[[], object]) -> Callable[[History, int], None]:
    """Returns a log function that does something after a batch."""

    def log(history: History, updates: int) -> None:
        if history.updates == update:
            do()

    return log


def updates_of(path: Path) -> int:
    """Returns the number of batches in a checkpoint."""
    with safe_open(path, framework="pt") as file:
        return len(json.loads(file.metadata()["history"])["losses"])


def assert_same_run(one: Trainer, other: Trainer) -> None:
    """Asserts that weights, optimizer and history are the same bit by bit."""
    assert one.history == other.history
    weights, others = (trainer.student.module.state_dict() for trainer in (one, other))
    assert set(weights) == set(others)
    assert all(weights[name].equal(others[name]) for name in weights)
    states, others = (trainer.optimizer.state_dict()["state"] for trainer in (one, other))
    assert set(states) == set(others)
    for index, state in states.items():
        assert set(state) == set(others[index])
        assert all(state[name].equal(others[index][name]) for name in state)


@pytest.mark.parametrize("kind", KINDS)
class TestLearning:
    def test_agreement_rises_from_chance(self, target: PreTrainedModel, texts: list[LabelledText], kind: str) -> None:
        student = make_student(kind, target)
        steps = 3 if kind == "feature" else 1
        assert max(measure_agreement(student, texts[:3], steps).top1) < 0.3
        Trainer(student, texts[:3], TrainingConfig(epochs=120, learning_rate=1e-2)).run()
        assert min(measure_agreement(student, texts[:3], steps).top1) > 0.9

    def test_the_loss_is_reported_batch_by_batch_and_falls(
        self, target: PreTrainedModel, texts: list[LabelledText], kind: str
    ) -> None:
        reported = []
        trainer = Trainer(make_student(kind, target), texts, replace(CONFIG, epochs=16))
        history = trainer.run(evaluate, lambda history, updates: reported.append((history.updates, updates)))
        count = len(trainer.plan)
        assert reported == [(update, count) for update in range(1, count + 1)]
        assert [len(losses) for losses in history.losses] == [
            3 if kind == "feature" and update % 2 else 1 for update in range(count)
        ]
        first_steps = [losses[0] for losses in history.losses]
        assert sum(first_steps[-10:]) < 0.9 * sum(first_steps[:10])


class Begin(Protocol):
    """Makes a trainer for texts, whose student's first weights are a function of the seed."""

    def __call__(self, path: Path | None = None, seed: int = 0, config: TrainingConfig = CONFIG) -> Trainer: ...


@pytest.fixture
def begin(target: PreTrainedModel, texts: list[LabelledText], kind: str) -> Begin:
    def make_dataset() -> DeviceDataset:
        return DeviceDataset(Teacher(target, (0,)), [text.tokens for text in texts])

    def make(path: Path | None = None, seed: int = 0, config: TrainingConfig = CONFIG) -> Trainer:
        student = make_student(kind, target, seed)
        if kind == "dataset":
            assert isinstance(student, FeatureStudent)
            return CapturedTrainer(student, texts, config, make_dataset, checkpoint=path)
        return Trainer(student, texts, config, path)

    return make


@pytest.mark.parametrize("kind", MODES)
class TestResuming:
    @pytest.fixture
    def uninterrupted(self, begin: Begin, kind: str) -> Trainer:
        """A run without interruption."""
        trainer = begin()
        trainer.run(evaluate)
        assert trainer.history.updates == len(trainer.plan) > 6
        assert len(trainer.history.agreement) == CONFIG.evaluations
        return trainer

    @pytest.mark.parametrize("interruptions", [(1,), (2, 5), (3, 4)])
    def test_an_interrupted_run_ends_as_one_that_was_not(
        self, begin: Begin, uninterrupted: Trainer, tmp_path: Path, interruptions: tuple[int, ...]
    ) -> None:
        path = tmp_path / "checkpoint"
        for seed, update in enumerate(interruptions):
            trainer = begin(path, seed)
            with pytest.raises(KeyboardInterrupt):
                trainer.run(evaluate, at(update, press_ctrl_c))
            assert updates_of(path) == update
        # Once it has begun, the student's state does not matter: everything comes from the checkpoint.
        last = begin(path, seed=99)
        last.run(evaluate)
        assert_same_run(last, uninterrupted)

    def test_ctrl_c_in_the_middle_of_an_update_waits_for_its_end(
        self, begin: Begin, uninterrupted: Trainer, tmp_path: Path, kind: str
    ) -> None:
        path = tmp_path / "checkpoint"
        trainer = begin(path)
        forwards = itertools.count(1)

        def interrupt(*_: object) -> None:
            if next(forwards) == 4:
                press_ctrl_c()

        module = trainer.student.module
        part = module.model if kind == "causal" else module.fuse
        handle = part.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            trainer.run(evaluate)
        handle.remove()
        assert updates_of(path) == trainer.history.updates == len(trainer.history.losses) > 0
        last = begin(path)
        assert last.history == trainer.history
        last.run(evaluate)
        assert_same_run(last, uninterrupted)

    def test_a_crash_loses_nothing_that_was_saved(self, begin: Begin, uninterrupted: Trainer, tmp_path: Path) -> None:
        path = tmp_path / "checkpoint"
        config = replace(CONFIG, checkpoint_minutes=0.0)

        def crash() -> None:
            raise ZeroDivisionError

        trainer = begin(path, config=config)
        with pytest.raises(ZeroDivisionError):
            trainer.run(evaluate, at(4, crash))
        assert updates_of(path) == 3
        last = begin(path, config=config)
        last.run(evaluate)
        assert_same_run(last, uninterrupted)

    @pytest.mark.parametrize("unread", [2, 3, 99])
    def test_losses_that_are_read_together_are_reported_together_and_are_the_same(
        self, begin: Begin, uninterrupted: Trainer, tmp_path: Path, unread: int
    ) -> None:
        path, reported = tmp_path / "checkpoint", []
        first = begin(path)
        first.max_unread = unread
        with pytest.raises(KeyboardInterrupt):
            first.run(evaluate, lambda history, updates: (reported.append(history.updates), press_ctrl_c()))
        assert reported == [min(unread, uninterrupted.history.agreement[0][0])], "evaluations are not put off"
        assert updates_of(path) == reported[0]
        last = begin(path, seed=99)
        last.max_unread = unread
        last.run(evaluate, lambda history, updates: reported.append(history.updates))
        assert max(later - earlier for earlier, later in itertools.pairwise(reported)) <= unread
        assert {at for at, _ in uninterrupted.history.agreement} <= set(reported)
        assert_same_run(last, uninterrupted)

    def test_a_run_that_is_at_its_end_stays_there(self, begin: Begin, uninterrupted: Trainer, tmp_path: Path) -> None:
        path = tmp_path / "checkpoint"
        begin(path).run(evaluate)
        reported: list[int] = []
        again = begin(path, seed=99)
        again.run(evaluate, lambda history, updates: reported.append(updates))
        assert not reported
        assert_same_run(again, uninterrupted)


class TestCheckpoints:
    @pytest.fixture
    def path(self, target: PreTrainedModel, texts: list[LabelledText], tmp_path: Path) -> Path:
        path = tmp_path / "checkpoint.safetensors"
        Trainer(make_student("causal", target), texts, CONFIG, path, "these").run()
        return path

    def test_one_of_other_settings_is_refused(
        self, target: PreTrainedModel, texts: list[LabelledText], path: Path
    ) -> None:
        with pytest.raises(ParameterError, match=f"{path} belongs to a training run with other settings"):
            Trainer(make_student("causal", target), texts, CONFIG, path, "those")

    def test_one_of_other_text_is_refused(self, target: PreTrainedModel, texts: list[LabelledText], path: Path) -> None:
        with pytest.raises(ParameterError, match=f"{path} belongs to a training run with other settings or other text"):
            Trainer(make_student("causal", target), texts[1:], CONFIG, path, "these")

    def test_a_corrupt_one_is_named(self, target: PreTrainedModel, texts: list[LabelledText], path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ModelFileError, match=f"{path} is corrupt"):
            Trainer(make_student("causal", target), texts, CONFIG, path, "these")

    def test_without_a_path_nothing_is_kept(
        self, target: PreTrainedModel, texts: list[LabelledText], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Trainer(make_student("causal", target), texts, CONFIG).run()
        assert not list(tmp_path.iterdir())


class TestSchedule:
    @staticmethod
    def rates(target: PreTrainedModel, texts: list[LabelledText], config: TrainingConfig) -> list[float]:
        """Returns the learning rate of every batch."""
        trainer = Trainer(make_student("causal", target), texts, config)
        rates = []
        trainer.run(log=lambda history, updates: rates.append(trainer.optimizer.param_groups[0]["lr"]))
        return rates

    def test_it_rises_to_its_highest_and_falls_along_a_cosine_to_a_hundredth(
        self, target: PreTrainedModel, texts: list[LabelledText]
    ) -> None:
        config = TrainingConfig(epochs=40, batch_tokens=10_000, learning_rate=2e-3, warm_up=0.2)
        rates = [rate / 2e-3 for rate in self.rates(target, texts, config)]
        assert len(rates) == 40
        rise, fall = rates[:8], rates[8:]
        assert rise == pytest.approx([update / 8 for update in range(8)], abs=2e-3)
        assert min(rise) > 0, "no batch is for nothing"
        assert fall == pytest.approx(
            [0.01 + 0.99 * (1 + math.cos(math.pi * update / 32)) / 2 for update in range(32)], rel=1e-6
        )

    def test_every_epoch_reads_every_text_in_another_order(
        self, target: PreTrainedModel, texts: list[LabelledText]
    ) -> None:
        config = replace(CONFIG, batch_tokens=1)  # a batch for each
        plan = Trainer(make_student("causal", target), texts, config).plan
        epochs = [[index for (index,) in plan[start : start + 7]] for start in (0, 7)]
        assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 2
        assert epochs[0] != epochs[1]

    @pytest.mark.parametrize("updates", [1, 3, 17])
    def test_batches_may_be_counted_in_place_of_epochs(
        self, target: PreTrainedModel, texts: list[LabelledText], updates: int
    ) -> None:
        by_epochs, by_updates = (
            Trainer(make_student("causal", target), texts, replace(CONFIG, **change))
            for change in ({"epochs": 9}, {"updates": updates, "epochs": 1})
        )
        assert len(by_updates.plan) == updates
        assert by_updates.plan == by_epochs.plan[:updates], "it goes on with further epochs"

    @pytest.mark.parametrize("warm_up", [0.0, 1.0])
    def test_it_may_only_fall_or_only_rise(
        self, target: PreTrainedModel, texts: list[LabelledText], warm_up: float
    ) -> None:
        config = TrainingConfig(epochs=6, batch_tokens=10_000, warm_up=warm_up)
        rates = self.rates(target, texts, config)
        assert rates == sorted(rates, reverse=warm_up == 0)
        assert len(set(rates)) == 6

    @pytest.mark.parametrize(("evaluations", "asked"), [(1, 1), (3, 3), (99, 6)])
    def test_agreement_is_measured_as_often_as_configured_and_at_the_end(
        self, target: PreTrainedModel, texts: list[LabelledText], evaluations: int, asked: int
    ) -> None:
        student = make_student("causal", target)
        modes = []

        def watch() -> list[float]:
            modes.append(student.module.training)
            return [float(len(modes))]

        config = TrainingConfig(epochs=6, batch_tokens=10_000, evaluations=evaluations)
        training = []
        history = Trainer(student, texts, config).run(watch, lambda *_: training.append(student.module.training))
        assert [shares for _, shares in history.agreement] == [[float(evaluate)] for evaluate in range(1, asked + 1)]
        assert history.agreement[-1][0] == history.updates == 6
        assert modes == [False] * asked, "as at work"
        assert all(training)
        assert not student.module.training


class TestConfig:
    @pytest.mark.parametrize(
        ("name", "value", "error"),
        [
            ("epochs", 0, LimitError),
            ("batch_tokens", 0, LimitError),
            ("updates", 0, LimitError),
            ("steps", 0, LimitError),
            ("evaluations", 0, LimitError),
            ("learning_rate", 0.0, ParameterError),
            ("learning_rate", math.nan, ParameterError),
            ("weight_decay", -0.1, ParameterError),
            ("checkpoint_minutes", math.nan, ParameterError),
            ("warm_up", 1.5, ParameterError),
            ("step_decay", -0.1, ParameterError),
        ],
    )
    def test_a_setting_outside_its_range_is_named(self, name: str, value: float, error: type[Exception]) -> None:
        with pytest.raises(error, match=rf"^training\.{name} must be .*; got {value}\.$"):
            TrainingConfig(**{name: value})  # type: ignore[arg-type]

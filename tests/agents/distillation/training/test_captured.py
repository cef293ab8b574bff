"""Updates from a dataset on the device equal those from texts, with graphs or without, and capturing learns nothing."""

from __future__ import annotations

import contextlib
import copy
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from specgym.agents.distillation.data.corpus import LabelledText
from specgym.agents.distillation.data.teacher import DeviceDataset, Teacher
from specgym.agents.distillation.distillation_config import FeatureShape, TrainingConfig
from specgym.agents.distillation.model.draft_shapes import new_network
from specgym.agents.distillation.model.students import FeatureStudent, layer_scales
from specgym.agents.distillation.training.captured import CapturedTrainer, unchanged
from specgym.agents.distillation.training.trainer import Trainer
from tests.support.distilling import label_random_texts
from tests.support.tiny_models import tiny_llama

LAYERS = (0,)
LENGTHS = (10, 70, 12, 33, 66, 5, 65, 80)
CONFIG = TrainingConfig(epochs=3, batch_tokens=256, learning_rate=5e-3, evaluations=3)


@pytest.fixture(scope="module")
def target() -> PreTrainedModel:
    return tiny_llama(dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def texts(target: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> list[LabelledText]:
    return label_random_texts(target, LENGTHS, tmp_path_factory.mktemp("texts"), LAYERS)


def make_student(target: PreTrainedModel, texts: Sequence[LabelledText]) -> FeatureStudent:
    """Returns a draft that knows two thirds of the target's tokens, before training."""
    network = new_network(target, torch.arange(20), FeatureShape(feature_layers=LAYERS), 0)
    scales = layer_scales(texts, lambda texts: texts, len(LAYERS), 32)
    return FeatureStudent(network, target.get_input_embeddings(), 3, scales)


def new_trainer(
    target: PreTrainedModel, texts: Sequence[LabelledText], checkpoint: Path | None = None
) -> CapturedTrainer:
    """Returns a trainer from a dataset on the device, before its first update."""

    def make_dataset() -> DeviceDataset:
        return DeviceDataset(Teacher(target, LAYERS), [text.tokens for text in texts])

    return CapturedTrainer(make_student(target, texts), texts, CONFIG, make_dataset, checkpoint=checkpoint)


def bits(trainer: CapturedTrainer) -> list[torch.Tensor]:
    """Returns copies of the weights and of AdamW's state."""
    states = [tensor for state in trainer.optimizer.state.values() for tensor in state.values()]
    return [tensor.detach().clone() for tensor in (*trainer.student.module.parameters(), *states)]


def learn(trainer: CapturedTrainer, batch: list[int], update: int, rate: float) -> None:
    """Learns from a batch at a learning rate."""
    for group in trainer.optimizer.param_groups:
        group["lr"].fill_(rate)
    trainer.learn(batch, trainer.student.steps_at(update))


@pytest.fixture
def trainer(target: PreTrainedModel, texts: list[LabelledText]) -> CapturedTrainer:
    """A trainer that is ready for its first update."""
    trainer = new_trainer(target, texts)
    trainer.prepare()
    return trainer


class TestCapturedTrainer:
    def test_it_learns_what_a_trainer_from_texts_learns(
        self, target: PreTrainedModel, texts: list[LabelledText]
    ) -> None:
        captured, plain = new_trainer(target, texts), Trainer(make_student(target, texts), texts, CONFIG, padded=True)
        begun = copy.deepcopy(plain.student.module)
        captured.run()
        plain.run()
        assert captured.plan == plain.plan
        assert {len(losses) for losses in plain.history.losses} == {1, 3}
        assert len({len(batch) for batch in plain.plan}) > 1, "the test would miss half-empty batches"
        for found, expected in zip(captured.history.losses, plain.history.losses, strict=True):
            assert found == pytest.approx(expected, rel=2e-3)
        for first, found, expected in zip(
            *(module.parameters() for module in (begun, captured.student.module, plain.student.module)), strict=True
        ):
            moved = (expected - first).norm()
            assert moved > 0
            assert (found - expected).norm() < 0.1 * moved, "but for rounding in bfloat16"

    def test_only_the_texts_of_a_batch_count(self, trainer: CapturedTrainer) -> None:
        """Uses the same texts alone and beside another one."""
        dataset, student, trimmed = trainer.dataset, trainer.student, trainer.student.trimmed
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            one, other, both, spare = (
                student.batch_losses(dataset.batch(torch.tensor(chosen), 128, trimmed), 1, every_row=True)[0]
                for chosen in ([1], [3], [1, 3], [-1, 1, -1])
            )
            nothing = student.batch_losses(dataset.batch(torch.tensor([-1]), 64, trimmed), 3, every_row=True)
        rows = [LENGTHS[index] - 1 for index in (1, 3)]
        assert float(both) == pytest.approx((rows[0] * float(one) + rows[1] * float(other)) / sum(rows), rel=1e-3)
        assert float(spare) == pytest.approx(float(one), rel=1e-3)
        assert one != other
        assert [float(loss) for loss in nothing] == [0, 0, 0]

    def test_the_teacher_reads_nothing_if_there_is_nothing_to_learn(
        self, target: PreTrainedModel, texts: list[LabelledText], tmp_path: Path
    ) -> None:
        datasets = []
        for _ in range(2):
            trainer = new_trainer(target, texts, tmp_path / "file")
            make_dataset = trainer.make_dataset
            trainer.make_dataset = lambda make=make_dataset: datasets.append(make()) or datasets[-1]
            trainer.run()
            assert len(datasets) == 1, "a run that is at its end needs no dataset"

    def test_if_no_graph_can_be_captured_a_warning_says_so_and_training_is_the_same(
        self, target: PreTrainedModel, texts: list[LabelledText], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*arguments: object, **options: object) -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(torch.cuda, "Stream", fail)
        expected, failing = (new_trainer(target, texts) for _ in range(2))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            expected.run()
        failing.graphs.capturing = True
        with pytest.warns(UserWarning, match=r"could not be captured as a CUDA graph \(out of memory\)") as warned:
            failing.run()
        assert len(warned) == 1
        assert failing.history == expected.history
        for name, tensor in expected.student.module.state_dict().items():
            assert failing.student.module.state_dict()[name].equal(tensor)


class TestUnchanged:
    @pytest.mark.parametrize("before", [0, 3])
    def test_what_a_block_does_is_undone_where_it_lies(self, trainer: CapturedTrainer, before: int) -> None:
        for update in range(before):
            learn(trainer, [0, 2], update, 1e-2)
        kept = bits(trainer)
        with unchanged(trainer.student.module, trainer.optimizer):
            learn(trainer, [1], 1, 1e-1)
            changed = bits(trainer)
            places = [tensor.data_ptr() for tensor in trainer.student.module.parameters()]
        assert not changed[0].equal(kept[0])
        assert places == [tensor.data_ptr() for tensor in trainer.student.module.parameters()]
        after = bits(trainer)
        assert len(after) == len(changed)
        expected = kept + [torch.zeros_like(tensor) for tensor in changed[len(kept) :]]
        assert all(one.equal(other) for one, other in zip(after, expected, strict=True))

    def test_the_first_update_after_it_is_as_without_it(
        self, trainer: CapturedTrainer, target: PreTrainedModel, texts: list[LabelledText]
    ) -> None:
        other = new_trainer(target, texts)
        other.prepare()
        with unchanged(trainer.student.module, trainer.optimizer):
            learn(trainer, [1], 1, 1e-1)
        for learner in (trainer, other):
            learn(learner, [0, 2], 0, 1e-2)
        assert all(one.equal(another) for one, another in zip(bits(trainer), bits(other), strict=True))

    def test_it_is_undone_after_an_error_too(self, trainer: CapturedTrainer) -> None:
        learn(trainer, [0], 0, 1e-2)
        kept = bits(trainer)
        with contextlib.suppress(ZeroDivisionError), unchanged(trainer.student.module, trainer.optimizer):
            learn(trainer, [1], 1, 1e-1)
            assert not bits(trainer)[0].equal(kept[0])
            raise ZeroDivisionError
        assert all(one.equal(other) for one, other in zip(bits(trainer), kept, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestGraphs:
    def test_captured_updates_equal_those_launched_kernel_by_kernel(
        self, target: PreTrainedModel, texts: list[LabelledText], recwarn: pytest.WarningsRecorder
    ) -> None:
        on_gpu = copy.deepcopy(target).to("cuda")
        captured, launched = (new_trainer(on_gpu, texts) for _ in range(2))
        assert captured.graphs.capturing
        assert launched.graphs.capturing
        launched.graphs.capturing = False
        for trainer in (captured, launched):
            trainer.run()
        assert not [each for each in recwarn if "could not be captured" in str(each.message)]
        assert captured.graphs.capturing
        assert len(captured.graphs) > 2, "several shapes"
        for found, expected in zip(captured.history.losses, launched.history.losses, strict=True):
            assert found == pytest.approx(expected, rel=2e-3)
        for state in captured.optimizer.state.values():
            assert int(state["step"]) == captured.history.updates, "capturing is no update"
        for found, expected in zip(
            captured.student.module.parameters(), launched.student.module.parameters(), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)

    def test_an_interrupted_run_continues_as_one_that_was_not(
        self, target: PreTrainedModel, texts: list[LabelledText], tmp_path: Path
    ) -> None:
        on_gpu = copy.deepcopy(target).to("cuda")
        straight = new_trainer(on_gpu, texts)
        straight.run()
        first = new_trainer(on_gpu, texts, tmp_path / "file")
        with pytest.raises(KeyboardInterrupt):
            first.run(log=lambda history, updates: signal.raise_signal(signal.SIGINT))
        last = new_trainer(on_gpu, texts, tmp_path / "file")
        assert 0 < last.history.updates < len(last.plan), "the test would be vacuous"
        last.run()
        for found, expected in zip(last.history.losses, straight.history.losses, strict=True):
            assert found == pytest.approx(expected, rel=5e-3)

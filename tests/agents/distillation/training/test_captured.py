"""Updates from a shelf are the updates that lessons bring, graphs or not, and making a graph teaches nothing."""

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

from specgym.agents.distillation.data.corpus import Lesson
from specgym.agents.distillation.data.device_dataset import DeviceDataset
from specgym.agents.distillation.data.teacher import Teacher
from specgym.agents.distillation.model.draft_shapes import FeatureShape, new_network
from specgym.agents.distillation.model.scales import layer_scales
from specgym.agents.distillation.model.students import FeatureStudent
from specgym.agents.distillation.training.captured import ShelfUpdates, unchanged
from specgym.agents.distillation.training.trainer import Trainer, TrainingConfig
from tests.support.distilling import make_lessons_of
from tests.support.tiny_models import tiny_llama

LAYERS = (0,)
LENGTHS = (10, 70, 12, 33, 66, 5, 65, 80)
CONFIG = TrainingConfig(epochs=3, batch_tokens=256, learning_rate=5e-3, looks=3)


@pytest.fixture(scope="module")
def target() -> PreTrainedModel:
    return tiny_llama(dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def lessons(target: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> list[Lesson]:
    return make_lessons_of(target, LENGTHS, tmp_path_factory.mktemp("lessons"), LAYERS)


def make_student(target: PreTrainedModel, lessons: Sequence[Lesson]) -> FeatureStudent:
    """A draft that knows two thirds of the target's tokens, in its first state."""
    network = new_network(target, torch.arange(20), FeatureShape(feature_layers=LAYERS), 0)
    scales = layer_scales(lessons, lambda lessons: lessons, len(LAYERS), 32)
    return FeatureStudent(network, target.get_input_embeddings(), 3, scales)


def make_trainer(
    target: PreTrainedModel, lessons: Sequence[Lesson], *, shelved: bool, checkpoint: Path | None = None
) -> Trainer:
    """A trainer that takes the same batches from a shelf or from lessons."""

    def shelve() -> DeviceDataset:
        return DeviceDataset(Teacher(target, LAYERS), [lesson.tokens for lesson in lessons])

    student = make_student(target, lessons)
    return Trainer(student, lessons, CONFIG, checkpoint, padded=True, shelve=shelve if shelved else None)


def bits(updates: ShelfUpdates) -> list[torch.Tensor]:
    """Copies of the weights and of AdamW's state."""
    states = [each for state in updates.optimizer.state.values() for each in state.values()]
    return [tensor.detach().clone() for tensor in (*updates.student.module.parameters(), *states)]


@pytest.fixture
def updates(target: PreTrainedModel, lessons: list[Lesson]) -> ShelfUpdates:
    """Updates that have not begun."""
    made = make_trainer(target, lessons, shelved=True).updates
    assert isinstance(made, ShelfUpdates)
    made.prepare()
    return made


class TestShelfUpdates:
    def test_they_learn_what_updates_from_lessons_learn(self, target: PreTrainedModel, lessons: list[Lesson]) -> None:
        shelved, told = (make_trainer(target, lessons, shelved=way) for way in (True, False))
        begun = copy.deepcopy(told.student.module)
        shelved.run()
        told.run()
        assert shelved.plan == told.plan
        assert {len(losses) for losses in told.history.losses} == {1, 3}
        assert len({len(batch) for batch in told.plan}) > 1, "the test would miss half-empty batches"
        for found, expected in zip(shelved.history.losses, told.history.losses, strict=True):
            assert found == pytest.approx(expected, rel=2e-3)
        for first, found, expected in zip(
            *(module.parameters() for module in (begun, shelved.student.module, told.student.module)), strict=True
        ):
            moved = (expected - first).norm()
            assert moved > 0
            assert (found - expected).norm() < 0.1 * moved, "but for rounding in bfloat16"

    def test_only_what_a_batch_holds_counts(self, updates: ShelfUpdates) -> None:
        """The same conversations, alone and beside another one."""
        shelf, student, trimmed = updates._shelf, updates.student, updates.student.trimmed
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            one, other, both, spare = (
                student.batch_losses(shelf.batch(torch.tensor(chosen), 128, trimmed), 1, every_row=True)[0]
                for chosen in ([1], [3], [1, 3], [-1, 1, -1])
            )
            nothing = student.batch_losses(shelf.batch(torch.tensor([-1]), 64, trimmed), 3, every_row=True)
        rows = [LENGTHS[index] - 1 for index in (1, 3)]
        assert float(both) == pytest.approx((rows[0] * float(one) + rows[1] * float(other)) / sum(rows), rel=1e-3)
        assert float(spare) == pytest.approx(float(one), rel=1e-3)
        assert one != other
        assert [float(loss) for loss in nothing] == [0, 0, 0]

    def test_the_teacher_is_not_asked_before_there_is_something_to_learn(
        self, target: PreTrainedModel, lessons: list[Lesson], tmp_path: Path
    ) -> None:
        asked = []

        def shelve() -> DeviceDataset:
            asked.append(1)
            return DeviceDataset(Teacher(target, LAYERS), [lesson.tokens for lesson in lessons])

        for expected in (1, 1):
            trainer = Trainer(
                make_student(target, lessons), lessons, CONFIG, tmp_path / "file", padded=True, shelve=shelve
            )
            trainer.run()
            assert len(asked) == expected, "a run that is at its end needs no shelf"

    def test_where_no_graph_can_be_captured_one_is_told_and_training_goes_on_as_it_would_have(
        self, target: PreTrainedModel, lessons: list[Lesson], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*arguments: object, **options: object) -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(torch.cuda, "Stream", fail)
        expected, failing = (make_trainer(target, lessons, shelved=True) for _ in range(2))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            expected.run()
        assert isinstance(failing.updates, ShelfUpdates)
        failing.updates.graphs.capturing = True
        with pytest.warns(UserWarning, match=r"could not be captured as a CUDA graph \(out of memory\)") as warned:
            failing.run()
        assert len(warned) == 1
        assert failing.history == expected.history
        for name, tensor in expected.student.module.state_dict().items():
            assert failing.student.module.state_dict()[name].equal(tensor)


class TestUnchanged:
    @pytest.mark.parametrize("before", [0, 3])
    def test_what_a_block_does_is_undone_where_it_lies(self, updates: ShelfUpdates, before: int) -> None:
        for update in range(before):
            updates([0, 2], update, 1e-2)
        kept = bits(updates)
        with unchanged(updates.student.module, updates.optimizer):
            updates([1], 1, 1e-1)
            changed = bits(updates)
            places = [tensor.data_ptr() for tensor in updates.student.module.parameters()]
        assert not changed[0].equal(kept[0])
        assert places == [tensor.data_ptr() for tensor in updates.student.module.parameters()]
        after = bits(updates)
        assert len(after) == len(changed)
        expected = kept + [torch.zeros_like(tensor) for tensor in changed[len(kept) :]]
        assert all(one.equal(other) for one, other in zip(after, expected, strict=True))

    def test_the_first_update_after_it_is_as_without_it(
        self, updates: ShelfUpdates, target: PreTrainedModel, lessons: list[Lesson]
    ) -> None:
        other = make_trainer(target, lessons, shelved=True).updates
        assert isinstance(other, ShelfUpdates)
        other.prepare()
        with unchanged(updates.student.module, updates.optimizer):
            updates([1], 1, 1e-1)
        for made in (updates, other):
            made([0, 2], 0, 1e-2)
        assert all(one.equal(another) for one, another in zip(bits(updates), bits(other), strict=True))

    def test_it_is_undone_after_an_error_too(self, updates: ShelfUpdates) -> None:
        updates([0], 0, 1e-2)
        kept = bits(updates)
        with contextlib.suppress(ZeroDivisionError), unchanged(updates.student.module, updates.optimizer):
            updates([1], 1, 1e-1)
            assert not bits(updates)[0].equal(kept[0])
            raise ZeroDivisionError
        assert all(one.equal(other) for one, other in zip(bits(updates), kept, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestGraphs:
    def test_captured_updates_are_those_that_are_launched_piece_by_piece(
        self, target: PreTrainedModel, lessons: list[Lesson], recwarn: pytest.WarningsRecorder
    ) -> None:
        on_gpu = copy.deepcopy(target).to("cuda")
        captured, launched = (make_trainer(on_gpu, lessons, shelved=True) for _ in range(2))
        for trainer in (captured, launched):
            assert isinstance(trainer.updates, ShelfUpdates)
            assert trainer.updates.graphs.capturing
        launched.updates.graphs.capturing = False  # type: ignore[attr-defined]
        for trainer in (captured, launched):
            trainer.run()
        assert not [each for each in recwarn if "could not be captured" in str(each.message)]
        assert captured.updates.graphs.capturing  # type: ignore[attr-defined]
        assert len(captured.updates.graphs) > 2, "several shapes"  # type: ignore[attr-defined]
        for found, expected in zip(captured.history.losses, launched.history.losses, strict=True):
            assert found == pytest.approx(expected, rel=2e-3)
        for state in captured.optimizer.state.values():
            assert int(state["step"]) == captured.history.updates, "capturing is no update"
        for found, expected in zip(
            captured.student.module.parameters(), launched.student.module.parameters(), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)

    def test_an_interrupted_run_goes_on_as_one_that_was_not(
        self, target: PreTrainedModel, lessons: list[Lesson], tmp_path: Path
    ) -> None:
        on_gpu = copy.deepcopy(target).to("cuda")
        straight = make_trainer(on_gpu, lessons, shelved=True)
        straight.run()
        first = make_trainer(on_gpu, lessons, shelved=True, checkpoint=tmp_path / "file")
        with pytest.raises(KeyboardInterrupt):
            first.run(log=lambda history, updates: signal.raise_signal(signal.SIGINT))
        last = make_trainer(on_gpu, lessons, shelved=True, checkpoint=tmp_path / "file")
        assert 0 < last.history.updates < len(last.plan), "the test would be vacuous"
        last.run()
        for found, expected in zip(last.history.losses, straight.history.losses, strict=True):
            assert found == pytest.approx(expected, rel=5e-3)

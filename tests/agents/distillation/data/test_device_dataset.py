"""A shelf holds what state shards hold, gives the batches that lessons make, and takes no more room than it may."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import pad
from transformers import PreTrainedModel

from specgym.agents.distillation.data.batches import Batch, collate, trimmed_index
from specgym.agents.distillation.data.corpus import Lesson
from specgym.agents.distillation.data.device_dataset import DeviceDataset, shelf_bytes, shelf_room
from specgym.agents.distillation.data.teacher import TOP, Teacher
from specgym.controllers.evaluation.results.provenance import machine
from tests.support.distilling import make_lessons_of
from tests.support.tiny_models import VOCABULARY, tiny_llama

LENGTHS = (9, 2, 17, 30, 5)
LAYERS = (0,)
TRIMMED = trimmed_index(torch.arange(1, VOCABULARY, 2), VOCABULARY)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_llama(dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def lessons(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> list[Lesson]:
    return make_lessons_of(model, LENGTHS, tmp_path_factory.mktemp("lessons"), LAYERS)


@pytest.fixture(scope="module")
def shelf(model: PreTrainedModel, lessons: list[Lesson]) -> DeviceDataset:
    return DeviceDataset(Teacher(model, LAYERS), [lesson.tokens for lesson in lessons])


class TestBatches:
    @given(
        chosen=st.lists(st.integers(0, len(LENGTHS) - 1), min_size=1, max_size=6),
        nobody=st.integers(0, 3),
        wider=st.integers(0, 40),
    )
    def test_a_batch_is_what_the_lessons_of_a_state_shard_make(
        self, shelf: DeviceDataset, lessons: list[Lesson], chosen: list[int], nobody: int, wider: int
    ) -> None:
        expected = collate([lessons[index] for index in chosen], TRIMMED)
        width = expected.tokens.shape[1] + wider
        found = shelf.batch(torch.tensor(chosen + [-1] * nobody), width, TRIMMED)
        assert found.features.any()
        for name in ("tokens", "features", "teacher_probs"):
            part = getattr(expected, name)
            missing = (0, 0) * (part.dim() - 2) + (0, wider, 0, nobody)
            assert getattr(found, name).equal(pad(part, missing)), f"{name}: what is missing is zero"
        known = found.teacher_probs > 0
        assert found.teacher_ids[: len(chosen), : width - wider].equal(expected.teacher_ids)
        assert known.any(), "the test would be vacuous"
        assert not known[len(chosen) :].any(), "a conversation without tokens teaches nothing"

    def test_types_are_those_of_collated_batches(self, shelf: DeviceDataset, lessons: list[Lesson]) -> None:
        found, expected = shelf.batch(torch.tensor([0]), 8, TRIMMED), collate(lessons[:1], TRIMMED)
        for field in fields(Batch):
            assert getattr(found, field.name).dtype == getattr(expected, field.name).dtype

    def test_progress_is_told_token_by_token(self, model: PreTrainedModel, lessons: list[Lesson]) -> None:
        told: list[int] = []
        DeviceDataset(Teacher(model), [lesson.tokens for lesson in lessons], told.append)
        assert sum(told) == sum(LENGTHS)


class TestRoom:
    def test_its_size_is_that_of_what_it_holds(self) -> None:
        model = tiny_llama(dtype=torch.bfloat16, vocab_size=2 * TOP)
        texts = [torch.arange(length) for length in LENGTHS]
        shelf = DeviceDataset(Teacher(model, LAYERS), texts)
        held = sum(tensor.nbytes for tensor in (shelf._tokens, *shelf._states.values()))
        assert shelf_bytes(sum(LENGTHS), 2 * 32) == held

    def test_of_a_computer_it_may_take_half_of_the_memory(self) -> None:
        assert shelf_room(torch.device("cpu")) == pytest.approx(machine("cpu").memory_gib * 2**29, abs=1)
        assert shelf_room(torch.device("cpu")) > 0

    def test_of_a_gpu_it_may_take_half_of_what_is_free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reserve = [3000]  # freed memory that torch holds in reserve, which the driver does not know to be free
        monkeypatch.setattr(torch.cuda, "empty_cache", reserve.clear)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8001 - sum(reserve), 9999))
        assert shelf_room(torch.device("cuda")) == 4000

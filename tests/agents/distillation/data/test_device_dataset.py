"""A dataset on the device holds the states of state shards, gives the same batches, and takes limited memory."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import pad
from transformers import PreTrainedModel

from specgym.agents.distillation.data.corpus import Batch, LabelledText, collate, trimmed_index
from specgym.agents.distillation.data.teacher import TOP, DeviceDataset, Teacher, dataset_bytes, dataset_room
from specgym.controllers.evaluation.results.provenance import machine
from tests.support.distilling import label_random_texts
from tests.support.tiny_models import VOCABULARY, tiny_llama

LENGTHS = (9, 2, 17, 30, 5)
LAYERS = (0,)
TRIMMED = trimmed_index(torch.arange(1, VOCABULARY, 2), VOCABULARY)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_llama(dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def texts(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> list[LabelledText]:
    return label_random_texts(model, LENGTHS, tmp_path_factory.mktemp("texts"), LAYERS)


@pytest.fixture(scope="module")
def dataset(model: PreTrainedModel, texts: list[LabelledText]) -> DeviceDataset:
    return DeviceDataset(Teacher(model, LAYERS), [text.tokens for text in texts])


class TestBatches:
    @given(
        chosen=st.lists(st.integers(0, len(LENGTHS) - 1), min_size=1, max_size=6),
        nobody=st.integers(0, 3),
        wider=st.integers(0, 40),
    )
    def test_a_batch_is_what_the_texts_of_a_state_shard_make(
        self, dataset: DeviceDataset, texts: list[LabelledText], chosen: list[int], nobody: int, wider: int
    ) -> None:
        expected = collate([texts[index] for index in chosen], TRIMMED)
        width = expected.tokens.shape[1] + wider
        found = dataset.batch(torch.tensor(chosen + [-1] * nobody), width, TRIMMED)
        assert found.features.any()
        for name in ("tokens", "features", "teacher_probs"):
            part = getattr(expected, name)
            missing = (0, 0) * (part.dim() - 2) + (0, wider, 0, nobody)
            assert getattr(found, name).equal(pad(part, missing)), f"{name}: what is missing is zero"
        known = found.teacher_probs > 0
        assert found.teacher_ids[: len(chosen), : width - wider].equal(expected.teacher_ids)
        assert known.any(), "the test would be vacuous"
        assert not known[len(chosen) :].any(), "a conversation without tokens teaches nothing"

    def test_types_are_those_of_collated_batches(self, dataset: DeviceDataset, texts: list[LabelledText]) -> None:
        found, expected = dataset.batch(torch.tensor([0]), 8, TRIMMED), collate(texts[:1], TRIMMED)
        for field in fields(Batch):
            assert getattr(found, field.name).dtype == getattr(expected, field.name).dtype

    def test_progress_is_reported_to_the_last_token(self, model: PreTrainedModel, texts: list[LabelledText]) -> None:
        reported: list[int] = []
        DeviceDataset(Teacher(model), [text.tokens for text in texts], reported.append)
        assert reported[-1] == sum(LENGTHS)


class TestRoom:
    def test_its_size_is_that_of_what_it_holds(self) -> None:
        model = tiny_llama(dtype=torch.bfloat16, vocab_size=2 * TOP)
        texts = [torch.arange(length) for length in LENGTHS]
        dataset = DeviceDataset(Teacher(model, LAYERS), texts)
        held = sum(tensor.nbytes for tensor in (dataset._tokens, *dataset._states.values()))
        assert dataset_bytes(sum(LENGTHS), 2 * 32) == held

    def test_on_a_cpu_it_may_take_half_of_the_memory(self) -> None:
        assert dataset_room(torch.device("cpu")) == pytest.approx(machine("cpu").memory_gib * 2**29, abs=1)
        assert dataset_room(torch.device("cpu")) > 0

    def test_on_a_gpu_it_may_take_half_of_what_is_free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reserve = [3000]  # freed memory that torch holds in reserve, which the driver does not know to be free
        monkeypatch.setattr(torch.cuda, "empty_cache", reserve.clear)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8001 - sum(reserve), 9999))
        assert dataset_room(torch.device("cuda")) == 4000

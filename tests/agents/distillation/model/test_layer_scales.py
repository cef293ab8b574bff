"""A draft learns equally from layers of any size, and the exported draft reads unscaled states."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from specgym.agents.distillation.data.corpus import LabelledText
from specgym.agents.distillation.data.teacher import Teacher
from specgym.agents.distillation.distillation_config import TrainingConfig
from specgym.agents.distillation.model.students import FeatureStudent, layer_scales
from specgym.agents.distillation.training.trainer import Trainer
from specgym.env.drafts.network import FeatureDraftNetwork, load_network, save_network
from tests.support.distilling import label_random_texts
from tests.support.tiny_models import VOCABULARY, tiny_llama, tiny_network

LAYERS = (0, 1)
SCALES = torch.tensor([16.0, 0.25, 1.0]).repeat_interleave(32)


@pytest.fixture(scope="module")
def target() -> PreTrainedModel:
    return tiny_llama(dtype=torch.float32)


@pytest.fixture(scope="module")
def texts(target: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> list[LabelledText]:
    return label_random_texts(target, range(12, 17), tmp_path_factory.mktemp("texts"), LAYERS)


@pytest.fixture
def network() -> FeatureDraftNetwork:
    return tiny_network(vocabulary=VOCABULARY, feature_layers=LAYERS)


@pytest.fixture
def student(target: PreTrainedModel, network: FeatureDraftNetwork) -> FeatureStudent:
    return FeatureStudent(copy.deepcopy(network), target.get_input_embeddings(), 3, SCALES)


def as_it_is(texts: list[LabelledText]) -> list[LabelledText]:
    return texts


class TestLayerScales:
    @staticmethod
    def texts_of_sizes(sizes: list[float], count: int = 3) -> list[LabelledText]:
        """Returns texts whose states have these sizes by layer, except one token in ten; a layer has 16 numbers."""
        nothing, generator = torch.empty(0), torch.Generator().manual_seed(0)
        made = []
        for _ in range(count):
            states = torch.randn(200, len(sizes), 16, generator=generator) * torch.tensor(sizes)[:, None]
            states[::10] *= 1e4  # such as the first token of a text
            features = states.flatten(1).bfloat16()
            made.append(LabelledText(torch.zeros(200, dtype=torch.int64), features, nothing, nothing, 0, 0.0, "", 0))
        return made

    def test_they_are_the_typical_sizes_as_powers_of_two_and_the_last_state_stays(self) -> None:
        scales = layer_scales(self.texts_of_sizes([24.0, 0.3, 0.0, 7.0]), as_it_is, 3, 16)
        assert scales is not None
        assert scales.equal(torch.tensor([32.0, 0.25, 1.0, 1.0]).repeat_interleave(16))

    def test_states_of_further_layers_are_ignored(self) -> None:
        scales = layer_scales(self.texts_of_sizes([900.0, 24.0, 7.0]), as_it_is, 1, 16)
        assert scales is not None
        assert scales.equal(torch.tensor([32.0, 1.0]).repeat_interleave(16))

    def test_a_draft_that_reads_the_last_state_alone_has_none_and_needs_no_teacher(self) -> None:
        def teach(texts: object) -> list[LabelledText]:
            raise AssertionError

        assert layer_scales(self.texts_of_sizes([7.0]), teach, 0, 16) is None

    def test_texts_without_labels_are_labelled_first_with_the_same_result(
        self, target: PreTrainedModel, texts: list[LabelledText]
    ) -> None:
        bare = [replace(text, features=torch.empty(len(text.tokens), 0)) for text in texts]
        asked, kept = (
            layer_scales(bare, Teacher(target, LAYERS).label, 2, 32),
            layer_scales(texts, as_it_is, 2, 32),
        )
        assert asked is not None
        assert kept is not None
        assert asked.equal(kept)
        assert not kept.equal(torch.ones(96)), "the test would be vacuous"

    def test_the_first_texts_are_enough(self) -> None:
        texts = self.texts_of_sizes([24.0, 1.0], 60)
        cut = [replace(text, features=text.features * 0) for text in texts[40:]]
        for some in (texts, texts[:40], texts[:40] + cut):
            scales = layer_scales(some, as_it_is, 1, 16)
            assert scales is not None
            assert scales[0] == 32


class TestScaledStudent:
    def test_it_begins_as_a_draft_that_guesses_the_same(
        self,
        target: PreTrainedModel,
        texts: list[LabelledText],
        network: FeatureDraftNetwork,
        student: FeatureStudent,
    ) -> None:
        plain = FeatureStudent(network, target.get_input_embeddings(), 3)
        assert not student.module.reduce.weight.equal(network.reduce.weight)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            for text in texts:
                for found, expected in zip(student.guesses(text, 4), plain.guesses(text, 4), strict=True):
                    assert found.equal(expected), "powers of two change no digit"
            losses, plain_losses = student.losses(texts, 1), plain.losses(texts, 1)
        assert losses == plain_losses

    def test_the_network_for_decoding_guesses_what_the_trained_student_does(
        self, target: PreTrainedModel, texts: list[LabelledText], student: FeatureStudent, tmp_path: Path
    ) -> None:
        before = student.network.reduce.weight.clone()
        Trainer(student, texts, TrainingConfig(epochs=3, batch_tokens=64, learning_rate=1e-2)).run()
        assert not student.network.reduce.weight.equal(before)
        save_network(student.network, tmp_path / "draft.safetensors", {})
        network = load_network(tmp_path / "draft.safetensors").float()
        worker = FeatureStudent(network, target.get_input_embeddings(), 3)
        # Weights at work are in bfloat16.
        rounded = FeatureStudent(student.network.bfloat16().float(), target.get_input_embeddings(), 3, SCALES)
        with torch.inference_mode():
            for text in texts:
                guessed = [each.guesses(text, 3) for each in (worker, rounded, student)]
                for found, expected, unrounded in zip(*guessed, strict=True):
                    assert found.equal(expected)
                    torch.testing.assert_close(found, unrounded, rtol=0.05, atol=0.05)

    def test_reading_the_network_leaves_the_student_as_it_is(self, student: FeatureStudent) -> None:
        before = {name: tensor.clone() for name, tensor in student.module.state_dict().items()}
        student.network.reduce.weight.data.zero_()
        assert all(student.module.state_dict()[name].equal(tensor) for name, tensor in before.items())

    def test_layers_of_any_size_are_learned_from_alike(
        self, target: PreTrainedModel, texts: list[LabelledText], network: FeatureDraftNetwork
    ) -> None:
        """The scale divides out a factor of a layer's states: the student learns the same, bit by bit."""
        factors = torch.tensor([64.0, 0.5, 1.0]).repeat_interleave(32)
        trained = []
        for factor in (torch.ones(96), factors):
            adapted = copy.deepcopy(network)
            adapted.reduce.weight.data.div_(factor)
            grown = [replace(text, features=(text.features * factor).bfloat16()) for text in texts]
            student = FeatureStudent(adapted, target.get_input_embeddings(), 3, layer_scales(grown, as_it_is, 2, 32))
            trained.append(Trainer(student, grown, TrainingConfig(epochs=2, batch_tokens=64)).run().losses)
        assert trained[0] == trained[1]
        assert trained[0][0] != trained[0][-1]

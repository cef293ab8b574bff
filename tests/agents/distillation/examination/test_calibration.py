"""A calibrator is fitted on what happens in decoding, and the fit and its error follow their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from specgym.agents.distillation.data.corpus import LabelledText
from specgym.agents.distillation.data.generation import Conversation
from specgym.agents.distillation.distillation_config import FeatureShape
from specgym.agents.distillation.examination.calibration import (
    DEPTHS,
    RANKS,
    Examples,
    collect,
    depth_errors,
    expected_calibration_error,
    fit_map,
)
from specgym.agents.distillation.model.draft_shapes import new_network
from specgym.agents.distillation.model.students import FeatureStudent
from specgym.env.common.arrays import FloatArray
from tests.support.distilling import label_texts
from tests.support.tiny_models import VOCABULARY, tiny_llama


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_llama(dtype=torch.float32)


@pytest.fixture(scope="module")
def texts(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> list[LabelledText]:
    """Texts that the model wrote greedily or sampled, with its labels."""
    made = []
    for seed in range(6):
        greedy = seed % 2 == 0
        torch.manual_seed(seed)
        prompt = torch.randint(0, VOCABULARY, (1, 4))
        output = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=not greedy, top_k=0,
                                max_new_tokens=36)  # fmt: skip
        tokens = output[0].numpy().astype(np.int32)
        made.append(Conversation(tokens, 4, 0.0 if greedy else 1.0, "code", seed))
    return label_texts(model, made, tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def student(model: PreTrainedModel) -> FeatureStudent:
    network = new_network(model, torch.arange(20), FeatureShape(vocabulary=20), 0)
    return FeatureStudent(network, model.get_input_embeddings())


class TestExamples:
    def test_greedy_examples_are_the_children_of_nodes_that_the_target_reaches(
        self, student: FeatureStudent, texts: list[LabelledText]
    ) -> None:
        greedy = [text for text in texts if text.temperature == 0]
        examples = collect(student, greedy, greedy=True)
        expected: list[tuple[int, list[bool]]] = []
        for text in greedy:
            with torch.inference_mode():
                ranked = [logits.topk(RANKS).indices for logits in student.guesses(text, DEPTHS)]
            for step in range(DEPTHS):
                for position in range(max(4, step + 2), len(text.tokens)):
                    # The root stands `step` + 1 before the position; every token between must have been a candidate.
                    between = range(step)
                    if all(
                        text.tokens[position - step + back] in ranked[back][position - step + back - 2]
                        for back in between
                    ):
                        choice = int(text.teacher_ids[position - 1, 0])
                        children = ranked[step][position - 2].tolist()
                        expected.append((step + 1, [child == choice for child in children]))
        assert sorted(expected) == sorted(zip(examples.depth.tolist(), examples.accepted.tolist(), strict=True))
        assert {1, 2} <= set(examples.depth.tolist()), "the test would be vacuous"
        assert 0 < examples.accepted.mean() < 0.5

    def test_under_shared_noise_the_target_chooses_the_texts_own_tokens(
        self, student: FeatureStudent, texts: list[LabelledText]
    ) -> None:
        sampled = [text for text in texts if text.temperature > 0]
        examples = collect(student, sampled, greedy=False).at(1)
        # Every answer token of a vocabulary that the teacher's cache holds is an example, and ranks change with noise.
        assert len(examples.depth) == sum(len(text.tokens) - 4 for text in sampled)
        again, other = (collect(student, sampled, greedy=False, seed=seed).at(1) for seed in (0, 1))
        assert (again.log_probs == examples.log_probs).all()
        assert not (other.log_probs == examples.log_probs).all()

    def test_a_draft_that_is_the_target_is_always_right_whatever_the_noise(
        self, model: PreTrainedModel, texts: list[LabelledText]
    ) -> None:
        class Oracle:
            """Guesses with the teacher's own probabilities, so under shared noise it is always right."""

            token_ids = torch.arange(VOCABULARY)

            def guesses(self, text: LabelledText, steps: int) -> list[torch.Tensor]:
                logits = model(text.tokens[None, :-1]).logits[0, 1:]
                return [logits] * steps

        for greedy in (True, False):
            own = [text for text in texts if (text.temperature == 0) == greedy]
            examples = collect(Oracle(), own, greedy)  # type: ignore[arg-type]
            assert examples.accepted[:, 0].mean() > 0.99
            assert set(examples.depth.tolist()) == set(range(1, DEPTHS + 1))


def draw_examples(accept: FloatArray, nodes: int, seed: int = 0) -> Examples:
    """Returns nodes with random probabilities, whose children are accepted with the chances `accept(probabilities)`."""
    random = np.random.default_rng(seed)
    probabilities = np.sort(random.dirichlet(np.ones(RANKS + 1), nodes)[:, :RANKS])[:, ::-1]
    chances = accept(probabilities)  # type: ignore[operator]
    return Examples(
        np.log(probabilities), random.integers(1, DEPTHS + 1, nodes), random.random(chances.shape) < chances
    )


class TestFit:
    def test_probabilities_that_are_too_high_are_corrected_at_every_depth(self) -> None:
        fitted = fit_map(draw_examples(lambda p: p**1.7 * 0.8, 20_000))  # type: ignore[arg-type]
        errors = depth_errors(draw_examples(lambda p: p**1.7 * 0.8, 20_000, seed=1), fitted)  # type: ignore[arg-type]
        assert [error.depth for error in errors] == list(range(1, DEPTHS + 1))
        for error in errors:
            assert error.raw > 0.08
            assert error.calibrated < 0.02

    def test_probabilities_that_are_right_stay_as_they_are(self) -> None:
        seen = draw_examples(lambda p: p, 20_000)  # type: ignore[arg-type]
        calibrated = np.exp(fit_map(seen).calibrate(seen.log_probs, 3))
        assert np.abs(calibrated - np.exp(seen.log_probs)).mean() < 0.02

    def test_slopes_are_never_negative(self) -> None:
        fitted = fit_map(draw_examples(lambda p: 1 - p, 5_000))  # type: ignore[arg-type]
        assert (fitted.slope_low >= 0).all()
        assert (fitted.slope_high >= 0).all()


class TestError:
    def test_it_is_the_weighted_gap_of_each_bin(self) -> None:
        probabilities = np.array([0.11, 0.13, 0.19, 0.95, 0.99])
        accepted = np.array([True, False, False, True, True])
        low, high = abs(0.43 - 1), abs(1.94 - 2)
        assert expected_calibration_error(probabilities, accepted) == pytest.approx((low + high) / 5)

    @given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
    def test_it_lies_between_the_gap_of_the_means_and_the_worst_gap(self, seen: list[tuple[float, bool]]) -> None:
        probabilities, accepted = (np.array(column) for column in zip(*seen, strict=True))
        error = expected_calibration_error(probabilities, accepted)
        assert abs(probabilities.mean() - accepted.mean()) - 1e-9 <= error
        assert error <= np.abs(probabilities - accepted).mean() + 1e-9

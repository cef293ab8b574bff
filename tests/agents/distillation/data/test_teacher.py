"""A target's hidden states are recorded as they are, and so are its predictions at every position."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from specgym.agents.distillation.data.corpus import load_texts, text_shard
from specgym.agents.distillation.data.teacher import TOP, Teacher
from specgym.env.common.errors import PairError
from specgym.env.models.states import HiddenStates, decoder_layers
from tests.support.distilling import label_shard, label_texts, make_conversation, target_features
from tests.support.tiny_models import VOCABULARY, tiny_llama, tiny_target

TOKENS = torch.arange(2 * 9).reshape(2, 9)
LAYERS: list[tuple[int, ...]] = [(), (0,), (1,), (0, 1), (2,), (0, 2), (0, 1, 2)]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """A model of three layers, with the hooks that transformers adds for `expected_states`, and no others."""
    model = tiny_llama(num_hidden_layers=3)
    expected_states(model, TOKENS, ())
    return model


def hooks(model: PreTrainedModel) -> int:
    """Returns the number of functions that are called after forwards of the model's modules."""
    return sum(len(module._forward_hooks) for module in model.modules())


def expected_states(model: PreTrainedModel, tokens: torch.Tensor, layers: tuple[int, ...]) -> torch.Tensor:
    """Returns transformers' own states of these layers and the last state, side by side."""
    before_norm: list[torch.Tensor] = []
    handle = model.model.norm.register_forward_pre_hook(lambda module, inputs: before_norm.append(inputs[0]))
    states = model.model(tokens, output_hidden_states=True).hidden_states
    handle.remove()
    # The first entry is the embedding, and the last one is after the norm: the last layer's own is what the norm got.
    outputs = [*states[1:-1], before_norm[0]]
    return torch.cat([*(outputs[layer] for layer in layers), states[-1]], dim=-1)


class TestHiddenStates:
    @pytest.mark.parametrize("layers", LAYERS)
    def test_outputs_of_the_layers_stand_before_the_last_hidden_state(
        self, model: PreTrainedModel, layers: tuple[int, ...]
    ) -> None:
        with torch.inference_mode():
            expected = expected_states(model, TOKENS, layers)
            states = HiddenStates(model, layers)
            assert states.last is None
            model(TOKENS[:, :4])
            model(TOKENS)  # the last forward counts
            assert states.last is not None
            assert states.last.equal(expected)
            states.close()

    def test_nothing_is_recorded_after_closing(self, model: PreTrainedModel) -> None:
        before = hooks(model)
        states = HiddenStates(model, (0,))
        assert hooks(model) > before
        with torch.inference_mode():
            model(TOKENS)
            states.close()
            model(TOKENS)
        assert states.last is None
        assert hooks(model) == before

    def test_two_may_record_at_a_time(self, model: PreTrainedModel) -> None:
        one, other = HiddenStates(model, (0,)), HiddenStates(model, (0, 2))
        with torch.inference_mode():
            model(TOKENS)
            one.close()
            model(TOKENS[:1])
            assert one.last is None
            assert other.last is not None
            assert other.last.equal(expected_states(model, TOKENS[:1], (0, 2)))
        other.close()

    @pytest.mark.parametrize("layers", [(3,), (-1,), (0, 1, 7)])
    def test_layers_that_are_not_there_are_refused(self, model: PreTrainedModel, layers: tuple[int, ...]) -> None:
        before = hooks(model)
        with pytest.raises(PairError, match=r"layers \[.*\]; the target has 3"):
            HiddenStates(model, layers)
        assert hooks(model) == before

    def test_layers_are_found_whatever_their_family_calls_them(self, model: PreTrainedModel) -> None:
        other = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4)).eval()
        assert list(decoder_layers(model)) == list(model.model.layers)
        assert list(decoder_layers(other)) == list(other.transformer.h)
        with torch.inference_mode():
            expected = other(TOKENS, output_hidden_states=True).hidden_states
            states = HiddenStates(other, (1,))
            other(TOKENS)
        assert states.last is not None
        assert states.last.equal(torch.cat([expected[2], expected[-1]], dim=-1))


class TestTargetModel:
    @pytest.mark.parametrize("layers", [(), (0,), (0, 1)])
    def test_it_shows_the_requested_layers(self, layers: tuple[int, ...]) -> None:
        target = tiny_target()
        with torch.inference_mode():
            assert target.features is None
            features = target_features(target, TOKENS[0].tolist(), layers)
            with target.lent() as model:
                assert hooks(model) == 0
                # transformers' norms are computed in float32, whatever the precision.
                torch.testing.assert_close(
                    features, expected_states(model, TOKENS[:1], layers)[0], rtol=1e-4, atol=1e-4
                )
            assert target_features(target, TOKENS[0].tolist(), layers).shape == features.shape
            target.show_features(None)
            target.extend(TOKENS[1].tolist())
        assert target.features is None

    def test_layers_that_are_not_there_are_refused(self) -> None:
        target = tiny_target()
        with pytest.raises(PairError, match="the target has 2"):
            target.show_features((2,))


class TestTeacher:
    @pytest.mark.parametrize("layers", [(), (0, 2)])
    def test_its_states_are_those_of_a_forward_over_each_conversation_alone(
        self, model: PreTrainedModel, layers: tuple[int, ...]
    ) -> None:
        lengths = [1, 2, 120, *range(40, 120, 2), 7, 120]  # several batches, none of equal lengths
        shard = text_shard([make_conversation(length, seed) for seed, length in enumerate(lengths)])
        reported: list[int] = []
        before = hooks(model)
        with torch.inference_mode():
            states = label_shard(model, shard, layers, progress=reported.append)
            for start, end in itertools.pairwise(shard["starts"].tolist()):
                tokens = shard["tokens"][None, start:end].long()
                best = model(tokens).logits[0].float().log_softmax(-1).topk(VOCABULARY)
                assert states["features"][start:end].equal(expected_states(model, tokens, layers)[0].bfloat16())
                assert states["teacher_ids"][start:end].equal(best.indices.int())
                torch.testing.assert_close(
                    states["teacher_log_probs"][start:end].float(), best.values, rtol=1e-3, atol=1e-3
                )
        assert len(reported) > 1, "the test would miss batching"
        assert reported == sorted(reported)
        assert reported[-1] == sum(lengths)
        assert hooks(model) == before

    def test_a_text_that_it_labels_is_the_one_that_would_be_read_from_disk(
        self, model: PreTrainedModel, tmp_path: Path
    ) -> None:
        expected = label_texts(model, [make_conversation(length, length) for length in (9, 3, 30)], tmp_path, (1,))
        bare = list(load_texts(tmp_path, None))
        assert [text.features.shape for text in bare] == [(9, 0), (3, 0), (30, 0)]
        for text, other in zip(Teacher(model, (1,)).label(bare), expected, strict=True):
            for field in dataclasses.fields(text):
                found, wanted = (getattr(each, field.name) for each in (text, other))
                assert found.to(wanted.dtype).equal(wanted) if isinstance(wanted, torch.Tensor) else found == wanted

    def test_only_the_most_probable_tokens_are_kept_of_a_large_vocabulary(self) -> None:
        model = tiny_llama(vocab_size=2 * TOP)
        states = label_shard(model, text_shard([make_conversation(9, 0)]))
        assert states["teacher_ids"].shape == (9, TOP)
        assert (states["teacher_log_probs"].diff(dim=1) <= 0).all()
        assert (states["teacher_log_probs"].float().exp().sum(1) < 1).all()

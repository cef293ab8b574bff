"""Students learn what they compute in decoding, and their first weights are the configured ones."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from specgym.agents.distillation.data.corpus import LabelledText
from specgym.agents.distillation.distillation_config import CausalShape, FeatureShape
from specgym.agents.distillation.model.draft_shapes import new_causal, new_network
from specgym.agents.distillation.model.students import CausalStudent, FeatureStudent, rollout
from specgym.env.common.errors import LimitError, PairError, ParameterError
from specgym.env.drafts import FeatureDraft
from specgym.env.drafts.network import load_network, save_network
from specgym.env.models.attention import attend
from specgym.env.models.states import decoder_layers
from tests.support.distilling import FEATURE_SHAPES, guesses_at_work, label_texts, make_conversation
from tests.support.tiny_models import SHAPE, VOCABULARY, tiny_llama, tiny_network

CONVERSATIONS = [make_conversation(12, 1, 6), make_conversation(17, 2, 3), make_conversation(9, 3, 5)]
KNOWN = torch.arange(VOCABULARY - 1, -1, -2)
"""a vocabulary of every other token, in descending order"""
ROPE = {"rope_type": "default", "rope_theta": 777.0}


def cross_entropy(
    texts: Iterable[LabelledText], step: int, guess: Callable[[LabelledText, int], Mapping[int, float]]
) -> float:
    """Computes the loss by its definition.

    It is the mean over all positions for which a draft has a feature `step` tokens before. A position's loss is the sum
    of the teacher's probabilities times the draft's negative log-probabilities, over tokens that the draft knows.
    """
    losses = []
    for text in texts:
        for position in range(step + 2, len(text.tokens) + 1):
            guessed = guess(text, position)
            ids, said = text.teacher_ids[position - 1].tolist(), text.teacher_log_probs[position - 1].tolist()
            taught = [
                math.exp(each) * guessed[token] for token, each in zip(ids, said, strict=True) if token in guessed
            ]
            if taught:
                losses.append(-sum(taught))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("layers", "feature_layers"), FEATURE_SHAPES)
def test_a_feature_drafts_losses_are_those_of_its_guesses_in_decoding(
    tmp_path: Path, layers: int, feature_layers: tuple[int, ...]
) -> None:
    target = tiny_llama(dtype=torch.float32)
    texts = label_texts(target, CONVERSATIONS, tmp_path, feature_layers)
    network = tiny_network(vocabulary=len(KNOWN), layers=layers, feature_layers=feature_layers)
    network.token_ids.copy_(KNOWN)
    student = FeatureStudent(network, target.get_input_embeddings(), steps=3)
    with torch.autocast("cpu", torch.bfloat16):
        single, several = student.losses(texts, 0), student.losses(texts, 1)
    assert (len(single), len(several)) == (1, 3), "every second batch takes all steps"
    draft = FeatureDraft(network, target.get_input_embeddings(), 128)
    with torch.inference_mode():
        for step, loss in [(0, single[0]), *enumerate(several)]:
            slow = cross_entropy(
                texts, step, lambda text, position, step=step: guesses_at_work(draft, text, position, step)
            )
            assert float(loss) == pytest.approx(slow, rel=5e-3)


def test_the_targets_embedding_is_not_trained(tmp_path: Path) -> None:
    target = tiny_llama(dtype=torch.float32)
    texts = label_texts(target, CONVERSATIONS, tmp_path)
    student = FeatureStudent(tiny_network(vocabulary=VOCABULARY), target.get_input_embeddings())
    with torch.autocast("cpu", torch.bfloat16):
        torch.stack(student.losses(texts, 1)).sum().backward()
    assert target.get_input_embeddings().weight.grad is None
    assert all(weight.grad is not None for weight in student.module.parameters())


class TestCausalStudent:
    @staticmethod
    def losses(student: CausalStudent, texts: list[LabelledText], update: int) -> tuple[float, list[int]]:
        """Returns a batch's loss, and the tokens of its softmax: those whose rows of the head have a gradient."""
        student.module.zero_grad()
        (loss,) = student.losses(texts, update)
        loss.backward()
        learning = student.module.lm_head.weight.grad.abs().sum(1) > 0
        return float(loss.detach()), learning.nonzero()[:, 0].tolist()

    @pytest.fixture
    def texts(self, tmp_path: Path) -> list[LabelledText]:
        return label_texts(tiny_llama(), CONVERSATIONS, tmp_path)

    @pytest.mark.parametrize("rare_tokens", [0, 4, 99])
    def test_its_loss_is_that_of_its_guesses_among_the_known_tokens(
        self, texts: list[LabelledText], rare_tokens: int
    ) -> None:
        model = tiny_llama(seed=1)  # its head is not tied, which shows what learns
        student = CausalStudent(model, KNOWN, rare_tokens, seed=0)
        loss, weighed = self.losses(student, texts, 0)
        assert set(KNOWN.tolist()) <= set(weighed)
        assert len(weighed) == min(len(KNOWN) + rare_tokens, VOCABULARY)

        def guess(text: LabelledText, position: int) -> dict[int, float]:
            logits = model(text.tokens[None, :position]).logits[0, -1]
            return dict(zip(weighed, logits[weighed].log_softmax(-1).tolist(), strict=True))

        with torch.inference_mode():
            assert loss == pytest.approx(cross_entropy(texts, 0, guess), rel=1e-5)

    def test_rare_tokens_change_from_batch_to_batch_and_repeat_with_the_seed(self, texts: list[LabelledText]) -> None:
        def weighed(seed: int, update: int) -> list[int]:
            return self.losses(CausalStudent(tiny_llama(), KNOWN, 4, seed), texts, update)[1]

        student = CausalStudent(tiny_llama(), KNOWN, 4, 7)
        by_update = [self.losses(student, texts, update)[1] for update in range(6)]
        assert len(set(map(tuple, by_update))) > 3
        assert weighed(7, 5) == by_update[5], "whatever came before"
        assert len({tuple(weighed(seed, 0)) for seed in range(0, 400, 100)}) > 2
        met = set(itertools.chain.from_iterable(self.losses(student, texts, update)[1] for update in range(30)))
        assert met == set(range(VOCABULARY)), "every token learns to be rare"


class TestNewNetwork:
    @pytest.mark.parametrize("begin", ["random", "target"])
    def test_the_head_begins_as_the_targets_own(self, begin: str) -> None:
        target = tiny_llama(dtype=torch.bfloat16)
        with torch.no_grad():
            target.model.norm.weight.uniform_(0.5, 2)
        network = new_network(target, KNOWN, FeatureShape(begin=begin), 0)
        state = torch.randn(5, 32, dtype=torch.bfloat16)
        assert network.token_ids.equal(KNOWN)
        assert network.head(state.float()).allclose(target.lm_head(state)[:, KNOWN].float(), atol=0.05)
        assert network.output_norm.weight.equal(target.model.norm.weight.float())
        assert {weight.dtype for weight in network.parameters()} == {torch.float32}

    @pytest.mark.parametrize("layers", [1, 2])
    def test_its_layers_may_begin_as_the_targets_last(self, layers: int) -> None:
        """With the inputs of the target's layers, the draft's layers have the same outputs."""
        target = tiny_llama(
            dtype=torch.float32, num_hidden_layers=3, rms_norm_eps=1e-2, rope_parameters=ROPE, head_dim=12
        )
        network = new_network(target, KNOWN, FeatureShape(layers=layers, begin="target"), 0)
        passed = defaultdict(list)
        for index, layer in enumerate(decoder_layers(target)):
            layer.register_forward_hook(
                lambda module, inputs, output, index=index: passed[index].extend([inputs[0], output])
            )
        with torch.inference_mode():
            target(torch.arange(14)[None])
            for layer, index in zip(network.blocks, range(3 - layers, 3), strict=True):
                stream, expected = passed[index]
                query, key, value = layer.project(stream, network.rotary(torch.arange(14), stream.dtype))
                found = layer.finish(stream, attend(query, key, value, None))
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
                assert (expected - stream).abs().mean() > 0.05, "the test would be vacuous"

    @pytest.mark.parametrize(
        "target",
        [
            GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4)),
            Qwen2ForCausalLM(Qwen2Config(**SHAPE)),  # whose projections have biases
        ],
        ids=["GPT-2", "Qwen2"],
    )
    def test_other_layers_than_llamas_are_refused_as_a_beginning_only(self, target: PreTrainedModel) -> None:
        with pytest.raises(PairError, match=r"not built as Llama's .* Use begin=random"):
            new_network(target, KNOWN, FeatureShape(begin="target"), 0)
        assert new_network(target, KNOWN, FeatureShape(), 0).config.hidden_size == 32

    def test_more_layers_than_the_target_has_cannot_begin_as_its(self) -> None:
        with pytest.raises(PairError, match="cannot begin as the target's layers"):
            new_network(tiny_llama(), KNOWN, FeatureShape(layers=3, begin="target"), 0)

    def test_an_earlier_draft_is_trained_further_on_the_tokens_that_are_frequent_now(self, tmp_path: Path) -> None:
        target, path = tiny_llama(), tmp_path / "earlier.safetensors"
        earlier = new_network(target, KNOWN, FeatureShape(), 0)
        with torch.no_grad():
            earlier.head.weight.add_(1.0)
        save_network(earlier, path, {})
        strange = next(token for token in range(VOCABULARY) if token not in KNOWN.tolist())
        frequent = torch.tensor(sorted([strange, *KNOWN.tolist()[1:]]))
        network = new_network(target, frequent, FeatureShape(begin=str(path)), 1)
        assert network.token_ids.equal(frequent)
        assert network.fuse.weight.equal(earlier.fuse.weight.bfloat16().float())
        assert {weight.dtype for weight in network.parameters()} == {torch.float32}
        rows = dict(zip(frequent.tolist(), network.head.weight, strict=True))
        for token, row in zip(KNOWN.tolist()[1:], earlier.head.weight[1:], strict=True):
            assert rows[token].equal(row.bfloat16().float())
        assert rows[strange].equal(target.lm_head.weight[strange].float())

    def test_an_earlier_draft_of_another_shape_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "earlier.safetensors"
        save_network(new_network(tiny_llama(), KNOWN, FeatureShape(), 0), path, {})
        shape = FeatureShape(begin=str(path), layers=2)
        with pytest.raises(PairError, match=r"layers and feature layers \(32, 2, .*; got \(32, 1, "):
            new_network(tiny_llama(), KNOWN, shape, 0)

    def test_an_earlier_draft_may_read_further_layers_and_guesses_as_before_at_first(self, tmp_path: Path) -> None:
        target, path = tiny_llama(), tmp_path / "earlier.safetensors"
        save_network(new_network(target, KNOWN, FeatureShape(), 0), path, {})
        earlier = load_network(path).float()
        network = new_network(target, KNOWN, FeatureShape(begin=str(path), feature_layers=(0, 1)), 1)
        assert network.config.feature_layers == (0, 1)
        tokens, features = torch.randn(1, 5, 32), torch.randn(1, 5, 3 * 32)
        (output,) = rollout(network, tokens, features, 1)
        (expected,) = rollout(earlier, tokens, features[..., -32:], 1)
        assert output.equal(expected)

    def test_an_earlier_draft_that_reads_other_layers_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "earlier.safetensors"
        save_network(new_network(tiny_llama(), KNOWN, FeatureShape(feature_layers=(0,)), 0), path, {})
        for layers in ((), (1,), (0, 1)):
            with pytest.raises(PairError, match=r"got \(32, 1, \(0,\)\)"):
                new_network(tiny_llama(), KNOWN, FeatureShape(begin=str(path), feature_layers=layers), 0)

    def test_its_shape_is_the_configured_one(self) -> None:
        network = new_network(tiny_llama(), KNOWN, FeatureShape(layers=2, feature_layers=(0, 1)), 0)
        assert len(network.blocks) == 2
        assert network.config.feature_width == 3 * 32
        assert network.reduce.weight.shape == (32, 96)

    def test_a_seed_gives_its_weights_again(self) -> None:
        one, again, other = (new_network(tiny_llama(), KNOWN, FeatureShape(), seed).state_dict() for seed in (0, 0, 1))
        assert all(one[name].equal(again[name]) for name in one)
        assert not one["fuse.weight"].equal(other["fuse.weight"])


class TestNewCausal:
    SHAPE = CausalShape(hidden_size=12, layers=3, heads=2, intermediate_size=40)

    def test_its_shape_is_the_configured_one(self) -> None:
        target = tiny_llama(eos_token_id=[3, 4])
        config = new_causal(target, KNOWN, self.SHAPE, 0).config
        asked = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
        assert asked == (12, 3, 2, 40)
        for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings"):
            assert getattr(config, name) == getattr(target.config, name)

    def test_its_embedding_is_also_its_head(self) -> None:
        model = new_causal(tiny_llama(), KNOWN, self.SHAPE, 0)
        assert model.get_input_embeddings().weight.shape == (VOCABULARY, 12)
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight

    def test_a_full_embedding_keeps_the_targets_distances(self) -> None:
        target = tiny_llama(hidden_size=24)
        model = new_causal(target, torch.arange(VOCABULARY), CausalShape(hidden_size=24, heads=2), 0)
        ratio = self.distances(model) / self.distances(target)
        assert ratio.min() == pytest.approx(float(ratio.max()), rel=1e-3)

    def test_a_narrow_one_keeps_what_distinguishes_the_frequent_tokens(self) -> None:
        target = tiny_llama()
        rare = torch.tensor(sorted(set(range(VOCABULARY)) - set(KNOWN.tolist())))
        with torch.no_grad():
            weight = target.get_input_embeddings().weight
            weight[KNOWN, :20] = 0.5
            weight[rare, :20] *= 10
        ratio = self.distances(new_causal(target, KNOWN, self.SHAPE, 0), KNOWN) / self.distances(target, KNOWN)
        assert ratio.min() == pytest.approx(float(ratio.max()), rel=1e-3)

    @staticmethod
    def distances(model: PreTrainedModel, tokens: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        return torch.pdist(model.get_input_embeddings().weight.detach().double()[tokens])

    def test_a_seed_gives_its_weights_again(self) -> None:
        one, again, other = (new_causal(tiny_llama(), KNOWN, self.SHAPE, seed).state_dict() for seed in (0, 0, 1))
        assert all(one[name].equal(again[name]) for name in one)
        name = "model.layers.0.mlp.up_proj.weight"
        assert not one[name].equal(other[name])

    @pytest.mark.parametrize(("frequent", "widest"), [(VOCABULARY, 24), (7, 7)])
    def test_one_wider_than_the_targets_embedding_is_refused(self, frequent: int, widest: int) -> None:
        message = rf"causal\.hidden_size must be {widest} or less for this target; got 160"
        with pytest.raises(ParameterError, match=message):
            new_causal(tiny_llama(hidden_size=24), torch.arange(frequent), CausalShape(), 0)


class TestShapes:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: FeatureShape(layers=0), "feature.layers must be 1 or more; got 0."),
            (lambda: FeatureShape(vocabulary=-3), "feature.vocabulary must be 1 or more; got -3."),
            (lambda: FeatureShape(feature_layers=(1, 1)), "feature.feature_layers must rise from one to the next; got"),
            (lambda: FeatureShape(feature_layers=(3, 1)), "feature.feature_layers must rise from one to the next; got"),
            (lambda: FeatureShape(begin="home"), "feature.begin must be random, target or a .safetensors file that is"),
            (lambda: FeatureShape(begin="no.safetensors"), "feature.begin must be random, target or a .safetensors"),
            (lambda: CausalShape(layers=0), "causal.layers must be 1 or more; got 0."),
            (lambda: CausalShape(rare_tokens=0), "causal.rare_tokens must be 1 or more; got 0."),
            (lambda: CausalShape(heads=3), "causal.hidden_size must be an even multiple of causal.heads; got 160"),
            (lambda: CausalShape(hidden_size=25, heads=5), "causal.hidden_size must be an even multiple"),
        ],
    )
    def test_a_setting_outside_its_range_is_named(self, make: Callable[[], object], message: str) -> None:
        with pytest.raises((LimitError, ParameterError)) as refused:
            make()
        assert str(refused.value).startswith(message)

"""The two kinds of draft as they learn: a feature draft, and a small causal language model of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from agents.distillation.batches import collate, trimmed_index
from agents.distillation.corpus import Lesson
from agents.distillation.loss import soft_cross_entropy
from agents.distillation.rollout import rollout
from env.drafts.network import DecoderLayer, FeatureDraftConfig, FeatureDraftNetwork
from env.errors import PairError, ParameterError
from env.models.states import decoder_layers
from env.rounds import check_limit

__all__ = [
    "CausalShape",
    "CausalStudent",
    "FeatureShape",
    "FeatureStudent",
    "Student",
    "check_width",
    "new_causal",
    "new_network",
]


@dataclass(frozen=True)
class FeatureShape:
    """A feature draft's shape and how it begins.

    Raises:
        LimitError: a count that is not positive.
        ParameterError: an unknown `begin`, or feature layers out of order.
    """

    layers: int = 1
    """decoder layers"""
    feature_layers: tuple[int, ...] = ()
    """layers of the target, counted from 0, whose outputs are fused with its last hidden state"""
    vocabulary: int = 8192
    """tokens that the head knows, the most frequent ones [tokens]"""
    begin: str = "random"
    """weights of the decoder layers at first: ``random``, or those of the ``target``'s last layers"""

    def __post_init__(self) -> None:
        check_limit("feature.layers", self.layers)
        check_limit("feature.vocabulary", self.vocabulary)
        if list(self.feature_layers) != sorted(set(self.feature_layers)):
            raise ParameterError(f"feature.feature_layers must rise from one to the next; got {self.feature_layers}.")
        if self.begin not in ("random", "target"):
            raise ParameterError(f"feature.begin must be random or target; got {self.begin!r}.")


@dataclass(frozen=True)
class CausalShape:
    """A standalone draft's shape: a small Llama with the target's vocabulary.

    Raises:
        LimitError: a count that is not positive.
    """

    hidden_size: int = 160
    """width; the embedding of the whole vocabulary, which is also the head, takes most of the weights [numbers]"""
    layers: int = 4
    """decoder layers"""
    heads: int = 5
    """attention heads"""
    intermediate_size: int = 448
    """width of the gated feed-forward part [numbers]"""
    vocabulary: int = 8192
    """tokens that every batch weighs against each other: the most frequent ones [tokens]"""
    strangers: int = 1024
    """further tokens drawn for every batch, so that rare tokens learn to be rare [tokens]"""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "layers", "heads", "intermediate_size", "vocabulary", "strangers"):
            check_limit(f"causal.{name}", getattr(self, name))
        if self.hidden_size % self.heads or self.hidden_size // self.heads % 2:
            raise ParameterError(
                f"causal.hidden_size must be an even multiple of causal.heads; got {self.hidden_size} and {self.heads}."
            )


class Student(Protocol):
    """A draft in training."""

    token_ids: torch.Tensor
    """the target's token of each of the student's, `int64[vocabulary]`"""

    @property
    def module(self) -> nn.Module:
        """What is trained."""

    def losses(self, lessons: Sequence[Lesson], update: int) -> list[torch.Tensor]:
        """Mean cross-entropy to the teacher's distribution, a scalar for each step on the draft's own features."""

    def guesses(self, lesson: Lesson, steps: int) -> Iterator[torch.Tensor]:
        """Logits `[tokens - 2, vocabulary]` at each of `steps` steps; row r guesses the text's token r + 2."""


class FeatureStudent:
    """A feature draft in training.

    Args:
        network: see `new_network`.
        embedding: the target's token embedding, which is not trained.
        steps: steps on the draft's own features in every second batch; the others take one step.
    """

    def __init__(self, network: FeatureDraftNetwork, embedding: nn.Embedding, steps: int = 3) -> None:
        self.module: FeatureDraftNetwork = network.to(embedding.weight.device)
        self.embedding, self.steps = embedding, steps
        self._width = network.config.feature_width  # lessons may hold states of more layers before these
        self.token_ids = network.token_ids
        self._trimmed = trimmed_index(network.token_ids.cpu(), embedding.num_embeddings)

    def losses(self, lessons: Sequence[Lesson], update: int) -> list[torch.Tensor]:
        """See `Student.losses`."""
        batch, device = collate(lessons, self._trimmed), self.embedding.weight.device
        ids, probs = batch.teacher_ids.to(device), batch.teacher_probs.to(device)
        embedded = self.embedding(batch.tokens.to(device)).detach().to(torch.bfloat16)
        losses = []
        steps = self.steps if update % 2 else 1
        for step, output in enumerate(
            rollout(self.module, embedded, batch.features[..., -self._width :].to(device), steps)
        ):
            rows = probs[:, step:].sum(-1) > 0  # [batch, rows]: neither padding nor an early row without meaning
            logits = self.module.head(output[:, step:][rows])
            losses.append(soft_cross_entropy(logits, ids[:, step:][rows], probs[:, step:][rows]))
        return losses

    def guesses(self, lesson: Lesson, steps: int) -> Iterator[torch.Tensor]:
        """See `Student.guesses`; at step s the first s - 1 rows have no meaning."""
        device, dtype = self.embedding.weight.device, self.module.head.weight.dtype
        embedded = self.embedding(lesson.tokens[1:-1].to(device)).to(dtype)[None]
        features = lesson.features[:-2, -self._width :].to(device, dtype)[None]
        for output in rollout(self.module, embedded, features, steps):
            yield self.module.head(output[0])


class CausalStudent:
    """A causal language model in training.

    Args:
        model: see `new_causal`.
        token_ids: tokens that every batch weighs against each other, `int64[frequent]`.
        strangers: further tokens drawn for every batch.
        seed: of that draw.
    """

    def __init__(self, model: PreTrainedModel, token_ids: torch.Tensor, strangers: int, seed: int) -> None:
        self.module = model
        self.vocabulary = int(model.config.vocab_size)
        self.token_ids = torch.arange(self.vocabulary, device=model.device)
        self._frequent, self._seed = token_ids, seed
        self._rare = torch.tensor(sorted(set(range(self.vocabulary)) - set(token_ids.tolist())), dtype=torch.int64)
        self._strangers = min(strangers, len(self._rare))

    def losses(self, lessons: Sequence[Lesson], update: int) -> list[torch.Tensor]:
        """See `Student.losses`. A softmax over the whole vocabulary would take most of the time: a batch weighs the
        frequent tokens and as many others as `strangers` says, which change from batch to batch.
        """
        generator = torch.Generator().manual_seed(self._seed + update)
        drawn = torch.randperm(len(self._rare), generator=generator)[: self._strangers]
        weighed = torch.cat([self._frequent, self._rare[drawn]])
        batch, device = collate(lessons, trimmed_index(weighed, self.vocabulary)), self.module.device
        ids, probs = batch.teacher_ids.to(device), batch.teacher_probs.to(device)
        texts = pad_sequence([lesson.tokens for lesson in lessons], batch_first=True)  # the first token too, as at work
        hidden = self.module.get_decoder()(texts.to(device), use_cache=False).last_hidden_state[:, 1:]
        rows = probs.sum(-1) > 0
        head: nn.Linear = self.module.get_output_embeddings()
        logits = hidden[rows] @ head.weight[weighed.to(device)].T
        return [soft_cross_entropy(logits, ids[rows], probs[rows])]

    def guesses(self, lesson: Lesson, steps: int) -> Iterator[torch.Tensor]:
        """See `Student.guesses`: a model that reads tokens only guesses the same at every step."""
        logits: torch.Tensor = self.module(lesson.tokens[None, :-1].to(self.module.device)).logits[0, 1:]
        for _ in range(steps):
            yield logits


def new_network(
    target: PreTrainedModel, token_ids: torch.Tensor, shape: FeatureShape, seed: int
) -> FeatureDraftNetwork:
    """A network for `target` whose head begins as the target's own, cut to `token_ids`."""
    torch.manual_seed(seed)
    config = target.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    network = FeatureDraftNetwork(
        FeatureDraftConfig(
            config.hidden_size,
            config.num_attention_heads,
            getattr(config, "num_key_value_heads", config.num_attention_heads),
            head_dim,
            getattr(config, "intermediate_size", None) or 4 * config.hidden_size,  # GPT-2 does not say
            len(token_ids),
            shape.layers,
            shape.feature_layers,
            **(_target_details(target) if shape.begin == "target" else {}),
        )
    )
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    with torch.no_grad():
        for layer in network.blocks:
            for output in (layer.attention_output, layer.down):
                output.weight.mul_(0.5)  # a calm start: the residual stream dominates
        if shape.begin == "target":
            _copy_last_layers(network, target)
        network.head.weight.copy_(target.get_output_embeddings().weight[token_ids].float())
        norm = getattr(target.get_decoder(), "norm", None)
        if norm is not None:
            network.output_norm.weight.copy_(norm.weight.float())
    network.token_ids.copy_(token_ids)
    return network


def new_causal(target: PreTrainedModel, token_ids: torch.Tensor, shape: CausalShape, seed: int) -> PreTrainedModel:
    """A small Llama whose token embedding begins as the principal components of the target's.

    Args:
        target: whose vocabulary and end tokens it takes over.
        token_ids: the frequent tokens, whose embeddings the components are made to explain, `int64[frequent]`.
        shape: its shape.
        seed: of all other weights.

    Raises:
        ParameterError: see `check_width`.
    """
    torch.manual_seed(seed)
    config = target.config
    check_width(target, len(token_ids), shape)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=target.get_output_embeddings().weight.shape[0],
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            max_position_embeddings=config.max_position_embeddings,
            tie_word_embeddings=True,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )
    )
    with torch.no_grad():
        embedding = target.get_input_embeddings().weight.float().cpu()
        centred = embedding - embedding[token_ids].mean(0)
        _, _, components = torch.linalg.svd(centred[token_ids], full_matrices=False)
        small = centred @ components[: shape.hidden_size].T
        model.get_input_embeddings().weight.copy_(small / small[token_ids].std() * _EMBEDDING_SCALE)
    return model.to(target.device)


def check_width(target: PreTrainedModel, frequent: int, shape: CausalShape) -> None:
    """Refuses a causal draft that is wider than the embedding of so many of the target's tokens has components.

    Raises:
        ParameterError: it is.
    """
    widest = min(target.config.hidden_size, frequent)
    if shape.hidden_size > widest:
        raise ParameterError(f"causal.hidden_size must be {widest} or less for this target; got {shape.hidden_size}.")


_EMBEDDING_SCALE = 0.05


def _target_details(target: PreTrainedModel) -> dict[str, float]:
    """What else the target's layers compute with, by its name in `FeatureDraftConfig`."""
    rope = getattr(target.config, "rope_parameters", None) or {}
    details = {"rope_theta": rope.get("rope_theta"), "norm_eps": getattr(target.config, "rms_norm_eps", None)}
    return {name: float(value) for name, value in details.items() if value is not None}


def _copy_last_layers(network: FeatureDraftNetwork, target: PreTrainedModel) -> None:
    """Lets the draft's layers begin as the target's last ones.

    Raises:
        PairError: the target's layers are not built as Llama's.
    """
    blocks = decoder_layers(target)[-len(network.blocks) :]
    try:
        for layer, block in zip(network.blocks, blocks, strict=True):
            _copy_layer(layer, block)
    except (AttributeError, RuntimeError, ValueError) as error:
        raise PairError(
            f"The draft cannot begin as the target's layers: they are not built as Llama's ({error}). Use begin=random."
        ) from error


def _copy_layer(layer: DecoderLayer, block: Any) -> None:
    attention, feed_forward = block.self_attn, block.mlp
    if len(list(block.parameters())) != 9:
        raise ValueError("they have further weights")  # such as biases
    projections = (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
    layer.query_key_value.weight.copy_(torch.cat(projections).float())
    layer.attention_output.weight.copy_(attention.o_proj.weight.float())
    layer.gate_up.weight.copy_(torch.cat([feed_forward.gate_proj.weight, feed_forward.up_proj.weight]).float())
    layer.down.weight.copy_(feed_forward.down_proj.weight.float())
    layer.attention_norm.weight.copy_(block.input_layernorm.weight.float())
    layer.feed_forward_norm.weight.copy_(block.post_attention_layernorm.weight.float())

"""Drafts in training: a feature draft, and a small causal language model of its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from specgym.agents.distillation.data.corpus import Batch, LabelledText, Teach, collate, trimmed_index
from specgym.env.drafts.network import FeatureDraftNetwork

_CPU_ROWS, _GPU_ROWS = 64, 8192  # rows at a time: 64 of 8,192 float32 numbers stay in a core's cache
_SCALE_TEXTS = 40  # texts that `layer_scales` reads: about 12,000 tokens, whose median counts


def answer_rows(text: LabelledText, step: int) -> torch.Tensor:
    """Returns which rows of `guesses` after `step` further steps are in the answer, `bool[tokens - 2]`."""
    rows = torch.arange(len(text.tokens) - 2)
    return (rows + 2 >= text.answer_start) & (rows >= step)


class FeatureStudent:
    """A feature draft in training.

    Args:
        network: see `new_network`. With `scales` it learns from states that are divided by them. Its weights are
            changed so that it guesses as before, see `network`.
        embedding: the target's token embedding, which is not trained.
        steps: steps on the draft's own features in every second batch; the others take one step.
        scales: see `layer_scales`, `float32[feature_width]`; None leaves states as they are.
    """

    def __init__(
        self, network: FeatureDraftNetwork, embedding: nn.Embedding, steps: int = 3, scales: torch.Tensor | None = None
    ) -> None:
        device = embedding.weight.device
        self.module: FeatureDraftNetwork = network.to(device)
        self.embedding, self.steps = embedding, steps
        self.scales = None
        if scales is not None:
            self.scales = scales.to(device)
            _scale_reduction(self.module, self.scales)
        self._width = network.config.feature_width  # texts may hold states of more layers before these
        self.token_ids = network.token_ids
        self.trimmed = trimmed_index(network.token_ids.cpu(), embedding.num_embeddings)

    @property
    def network(self) -> FeatureDraftNetwork:
        """The draft for decoding, which reads the target's states as they are."""
        if self.scales is None:
            return self.module
        network = copy.deepcopy(self.module)
        _scale_reduction(network, 1 / self.scales)
        return network

    def steps_at(self, update: int) -> int:
        """Returns the steps on the draft's own features in the batch of that number."""
        return self.steps if update % 2 else 1

    def losses(self, texts: Sequence[LabelledText], update: int) -> list[torch.Tensor]:
        """Returns the mean cross-entropy to the teacher, a scalar for each step on the draft's own features."""
        return self.batch_losses(collate(texts, self.trimmed), self.steps_at(update))

    def batch_losses(self, batch: Batch, steps: int, *, every_row: bool = False) -> list[torch.Tensor]:
        """Computes `losses` of a batch.

        Args:
            batch: texts.
            steps: steps on the draft's own features.
            every_row: also computes logits of rows without a loss, so that no shape depends on the batch's content.
                Finding the rows with a loss makes the processor wait for the device.
        """
        device = self.embedding.weight.device
        ids, probs = batch.teacher_ids.to(device), batch.teacher_probs.to(device)
        embedded = self.embedding(batch.tokens.to(device)).detach().to(torch.bfloat16)
        features = self._scaled(batch.features[..., -self._width :].to(device))
        return [
            self._loss(output[:, step:], ids[:, step:], probs[:, step:], every_row)
            for step, output in enumerate(rollout(self.module, embedded, features, steps))
        ]

    def _loss(self, output: torch.Tensor, ids: torch.Tensor, probs: torch.Tensor, every_row: bool) -> torch.Tensor:
        rows = probs.sum(-1) > 0  # [batch, rows]: neither padding nor an early row without meaning
        if not every_row:
            return soft_cross_entropy(self.module.head(output[rows]), ids[rows], probs[rows])
        # The same mean: other rows add nothing to the sum, and are not counted.
        output, ids, probs = (part.flatten(0, 1) for part in (output, ids, probs))  # [batch * rows, ...]
        return soft_cross_entropy(self.module.head(output), ids, probs) * (len(probs) / rows.sum().clamp(min=1))

    def guesses(self, text: LabelledText, steps: int) -> Iterator[torch.Tensor]:
        """Yields logits `[tokens - 2, vocabulary]` for each of `steps` steps; row r guesses the text's token r + 2.

        At step s the first s - 1 rows have no meaning.
        """
        device, dtype = self.embedding.weight.device, self.module.head.weight.dtype
        embedded = self.embedding(text.tokens[1:-1].to(device)).to(dtype)[None]
        features = self._scaled(text.features[:-2, -self._width :].to(device, dtype)[None])
        for output in rollout(self.module, embedded, features, steps):
            yield self.module.head(output[0])

    def _scaled(self, features: torch.Tensor) -> torch.Tensor:
        """Divides the target's states by the scales, in their own precision."""
        return features if self.scales is None else features / self.scales.to(features.dtype)


def layer_scales(texts: Sequence[LabelledText], teach: Teach, layers: int, hidden_size: int) -> torch.Tensor | None:
    """Returns the divisors of the states that a draft fuses, or None if it reads the last state alone.

    Inner layers' states may be many times as large as the last one, which a norm has passed. An optimiser's steps are
    about equally large for every weight, so a draft would learn from large states in far larger steps.

    A layer's scale is the median root mean square of its states over the first texts' tokens, as a power of two.
    Dividing by a power of two, and folding it into weights, loses nothing in any precision. The last state has scale 1.

    Args:
        texts: training texts.
        teach: labels texts that have no labels.
        layers: fused layers, which stand before the last state.
        hidden_size: width of a layer's states [numbers].

    Returns:
        `float32[(layers + 1) * hidden_size]`, on the CPU.
    """
    if not layers:
        return None
    width = (layers + 1) * hidden_size
    states = torch.cat([text.features[:, -width:].float() for text in teach(texts[:_SCALE_TEXTS])])
    sizes = states.view(-1, layers + 1, hidden_size).square().mean(-1).sqrt().median(0).values  # [layers + 1]
    # A layer whose states are all zero has no size.
    scales = [2.0 ** round(math.log2(size)) if size else 1.0 for size in sizes[:-1].tolist()]
    return torch.tensor([*scales, 1.0]).repeat_interleave(hidden_size)


def _scale_reduction(network: FeatureDraftNetwork, scales: torch.Tensor) -> None:
    """Adapts the weights that fuse layers to states divided by `scales`."""
    with torch.no_grad():
        cast("nn.Linear", network.reduce).weight.mul_(scales)


class CausalStudent:
    """A causal language model in training.

    Args:
        model: see `new_causal`.
        token_ids: tokens whose logits every batch computes, `int64[frequent]`.
        rare_tokens: further tokens drawn for every batch.
        seed: of that draw.
    """

    def __init__(self, model: PreTrainedModel, token_ids: torch.Tensor, rare_tokens: int, seed: int) -> None:
        self.module = model
        self.vocabulary = int(model.config.vocab_size)
        self.token_ids = torch.arange(self.vocabulary, device=model.device)
        self._frequent, self._seed = token_ids, seed
        self._rare = torch.tensor(sorted(set(range(self.vocabulary)) - set(token_ids.tolist())), dtype=torch.int64)
        self._drawn = min(rare_tokens, len(self._rare))

    def losses(self, texts: Sequence[LabelledText], update: int) -> list[torch.Tensor]:
        """See `FeatureStudent.losses`; there is one step.

        A softmax over the whole vocabulary would take most of the time. A batch's softmax is over the frequent tokens
        and some rare ones, which change from batch to batch.
        """
        generator = torch.Generator().manual_seed(self._seed + update)
        drawn = torch.randperm(len(self._rare), generator=generator)[: self._drawn]
        known = torch.cat([self._frequent, self._rare[drawn]])
        batch, device = collate(texts, trimmed_index(known, self.vocabulary)), self.module.device
        ids, probs = batch.teacher_ids.to(device), batch.teacher_probs.to(device)
        tokens = pad_sequence([text.tokens for text in texts], batch_first=True)  # with the first one, as in decoding
        hidden = self.module.get_decoder()(tokens.to(device), use_cache=False).last_hidden_state[:, 1:]
        rows = probs.sum(-1) > 0  # [batch, rows]
        head: nn.Linear = self.module.get_output_embeddings()
        logits = hidden[rows] @ head.weight[known.to(device)].T  # [rows with a loss, known tokens]
        return [soft_cross_entropy(logits, ids[rows], probs[rows])]

    def guesses(self, text: LabelledText, steps: int) -> Iterator[torch.Tensor]:
        """See `FeatureStudent.guesses`: a model that reads only tokens guesses the same at every step."""
        logits: torch.Tensor = self.module(text.tokens[None, :-1].to(self.module.device)).logits[0, 1:]
        for _ in range(steps):
            yield logits


Student: TypeAlias = FeatureStudent | CausalStudent
"""a draft in training; `token_ids` are the target's tokens of its vocabulary, and `module` has the trained weights"""


class _SoftCrossEntropy(torch.autograd.Function):
    """Reads the logits once and writes the gradient once, in the logits' own precision.

    The gradient comes from the same pass as the loss, which saves most of the training's time.
    Log-softmax and gather would write and read five float32 tensors of the logits' size.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, ids: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        gradient = torch.empty_like(logits)
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        count = _CPU_ROWS if logits.device.type == "cpu" else _GPU_ROWS
        for first in range(0, len(logits), count):
            rows = slice(first, first + count)
            scores, weights = logits[rows].float(), probs[rows]
            expected = (weights * scores.gather(-1, ids[rows])).sum(-1)
            peak, mass = scores.amax(-1, keepdim=True), weights.sum(-1, keepdim=True)
            odds = (scores - peak).exp_()
            norm = odds.sum(-1, keepdim=True)
            total += (mass * (norm.log() + peak)).sum() - expected.sum()
            gradient[rows] = odds.mul_(mass / norm).scatter_add_(-1, ids[rows], -weights).div_(len(logits))
        ctx.gradient = gradient
        return (total / len(logits)).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gradient, ctx.gradient = ctx.gradient, None  # a second backward would scale it twice: it fails instead
        return gradient.mul_(outer), None, None


def soft_cross_entropy(logits: torch.Tensor, ids: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """Returns the mean cross-entropy of rows of logits to probabilities of some tokens; all others count as 0.

    The mean of -sum_k p_k log softmax(z)_k has the gradient sum(p) softmax(z) - p in z. Both are computed in float32.

    Args:
        logits: `[rows, vocabulary]`.
        ids: tokens that have a probability, `int64[rows, k]`; one that occurs twice counts twice.
        probs: their probabilities, `float32[rows, k]`.

    Returns:
        A scalar; `backward` can be called once and reaches `logits` only.
    """
    loss: torch.Tensor = _SoftCrossEntropy.apply(logits, ids, probs)  # type: ignore[no-untyped-call]
    return loss


def rollout(
    network: FeatureDraftNetwork, tokens: torch.Tensor, features: torch.Tensor, steps: int
) -> Iterator[torch.Tensor]:
    """Yields the draft's features after 1, 2, … `steps` steps, for every row at once, as in decoding.

    At its first step the draft reads the target's features, from the second on its own. Its attention still sees true
    rows for the committed text, and its own rows for the guessed tokens. Training on these later steps too is the
    training-time test of EAGLE-3 (Li et al. 2025, arXiv 2503.01840).

    Row r holds token r + 1 of the text and, at step 1, the target's feature at r. At step s it holds the feature that
    the draft itself computed from row r - s + 1, so the first s - 1 rows have no meaning.

    Args:
        network: the draft.
        tokens: token embeddings of rows, `[batch, rows, hidden]`.
        features: the target's states before each row's token, `[batch, rows, feature_width]`.
        steps: number of steps.

    Yields:
        Output features, `[batch, rows, hidden]`, one a step.
    """
    rows = tokens.shape[1]
    positions = torch.arange(rows, device=tokens.device)
    distance = positions[:, None] - positions[None, :]  # [query row, key row]
    states: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in network.blocks]  # keys and values by step
    features = network.reduce(features)
    for step in range(1, steps + 1):
        # True rows up to the end of the target's text, then an own row for every later step.
        masks = [distance >= step - 1] + [distance == step - own for own in range(2, step + 1)]
        mask = torch.cat(masks, dim=1)
        stream = network.begin(tokens, features)
        rotation = network.rotary(positions, stream.dtype)
        for layer, layer_states in zip(network.blocks, states, strict=True):
            query, key, value = layer.project(stream, rotation)
            layer_states.append((key, value))
            stream = layer.finish(stream, _attend(query, layer_states, mask))
        output: torch.Tensor = network.output_norm(stream)
        yield output
        features = output.roll(1, dims=1)


def _attend(query: torch.Tensor, states: list[tuple[torch.Tensor, torch.Tensor]], mask: torch.Tensor) -> torch.Tensor:
    """Computes attention over the keys and values of all steps so far."""
    keys, values = (torch.cat(parts, dim=2) for parts in zip(*states, strict=True))
    group = query.shape[1] // keys.shape[1]
    return scaled_dot_product_attention(
        query, keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1), attn_mask=mask
    )

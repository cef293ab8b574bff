"""The two kinds of draft as they learn: a feature draft, and a small causal language model of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Protocol, cast

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from specgym.agents.distillation.data.batches import Batch, collate, trimmed_index
from specgym.agents.distillation.data.corpus import Lesson
from specgym.agents.distillation.model.loss import soft_cross_entropy
from specgym.agents.distillation.model.rollout import rollout
from specgym.env.drafts.network import FeatureDraftNetwork


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
        network: see `new_network`; with `scales` it learns on states that are divided by them, which its weights are
            changed for, so that it guesses as before. See `network`.
        embedding: the target's token embedding, which is not trained.
        steps: steps on the draft's own features in every second batch; the others take one step.
        scales: see `layer_scales`, `float32[feature_width]`; None leaves states as they are.
    """

    def __init__(
        self,
        network: FeatureDraftNetwork,
        embedding: nn.Embedding,
        steps: int = 3,
        scales: torch.Tensor | None = None,
    ) -> None:
        device = embedding.weight.device
        self.module: FeatureDraftNetwork = network.to(device)
        self.embedding, self.steps = embedding, steps
        self.scales = None if scales is None else scales.to(device)
        if self.scales is not None:
            _scale_reduction(self.module, self.scales)
        self._width = network.config.feature_width  # lessons may hold states of more layers before these
        self.token_ids = network.token_ids
        self.trimmed = trimmed_index(network.token_ids.cpu(), embedding.num_embeddings)

    @property
    def network(self) -> FeatureDraftNetwork:
        """The draft as it works, on states as the target shows them."""
        if self.scales is None:
            return self.module
        network = copy.deepcopy(self.module)
        _scale_reduction(network, 1 / self.scales)
        return network

    def steps_at(self, update: int) -> int:
        """Steps on the draft's own features in the batch of that number."""
        return self.steps if update % 2 else 1

    def losses(self, lessons: Sequence[Lesson], update: int) -> list[torch.Tensor]:
        """See `Student.losses`."""
        return self.batch_losses(collate(lessons, self.trimmed), self.steps_at(update))

    def batch_losses(self, batch: Batch, steps: int, *, every_row: bool = False) -> list[torch.Tensor]:
        """`losses` of a batch.

        Args:
            batch: conversations.
            steps: steps on the draft's own features.
            every_row: computes logits of the rows without a loss too, so that no shape depends on what a batch holds:
                to find out which rows have one, the processor waits for the device.
        """
        device = self.embedding.weight.device
        ids, probs = batch.teacher_ids.to(device), batch.teacher_probs.to(device)
        embedded = self.embedding(batch.tokens.to(device)).detach().to(torch.bfloat16)
        features = self._scaled(batch.features[..., -self._width :].to(device))
        loss = self._loss_of_every_row if every_row else self._loss
        return [
            loss(output[:, step:], ids[:, step:], probs[:, step:])
            for step, output in enumerate(rollout(self.module, embedded, features, steps))
        ]

    def _loss(self, output: torch.Tensor, ids: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        rows = probs.sum(-1) > 0  # [batch, rows]: neither padding nor an early row without meaning
        return soft_cross_entropy(self.module.head(output[rows]), ids[rows], probs[rows])

    def _loss_of_every_row(self, output: torch.Tensor, ids: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        """The same mean: rows without a probability add nothing to the sum, and are not counted."""
        output, ids, probs = (each.flatten(0, 1) for each in (output, ids, probs))
        count = (probs.sum(-1) > 0).sum().clamp(min=1)
        return soft_cross_entropy(self.module.head(output), ids, probs) * (len(probs) / count)

    def guesses(self, lesson: Lesson, steps: int) -> Iterator[torch.Tensor]:
        """See `Student.guesses`; at step s the first s - 1 rows have no meaning."""
        device, dtype = self.embedding.weight.device, self.module.head.weight.dtype
        embedded = self.embedding(lesson.tokens[1:-1].to(device)).to(dtype)[None]
        features = self._scaled(lesson.features[:-2, -self._width :].to(device, dtype)[None])
        for output in rollout(self.module, embedded, features, steps):
            yield self.module.head(output[0])

    def _scaled(self, features: torch.Tensor) -> torch.Tensor:
        """The target's states as the draft in training reads them, in their own precision."""
        return features if self.scales is None else features / self.scales.to(features.dtype)


def _scale_reduction(network: FeatureDraftNetwork, scales: torch.Tensor) -> None:
    """Changes the weights that fuse layers to what states divided by `scales` need."""
    with torch.no_grad():
        cast("nn.Linear", network.reduce).weight.mul_(scales)


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

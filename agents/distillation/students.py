"""The two kinds of draft as they learn: a feature draft, and a small causal language model of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from agents.distillation.batches import collate, trimmed_index
from agents.distillation.corpus import Lesson
from agents.distillation.loss import soft_cross_entropy
from agents.distillation.rollout import rollout
from env.drafts.network import FeatureDraftNetwork

__all__ = ["CausalStudent", "FeatureStudent", "Student"]


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

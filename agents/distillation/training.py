"""Training a feature draft on cached teacher states."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from agents.distillation.corpus import Lesson
from agents.distillation.rollout import rollout
from env.drafts.network import FeatureDraftConfig, FeatureDraftNetwork

__all__ = [
    "Batch",
    "TrainingConfig",
    "collate",
    "frequent_tokens",
    "new_network",
    "plan_batches",
    "train",
    "trimmed_index",
]


@dataclass(frozen=True)
class TrainingConfig:
    """How a feature draft is trained."""

    epochs: int = 6
    """times that every conversation is seen"""
    batch_tokens: int = 2048
    """tokens of a batch, padding included [tokens]"""
    learning_rate: float = 1e-3
    """AdamW's learning rate at its highest"""
    warm_up: float = 0.03
    """share of the updates over which the learning rate rises; then it falls along a cosine to a hundredth"""
    weight_decay: float = 0.01
    """AdamW's weight decay"""
    steps: int = 3
    """steps on the draft's own features in every second batch; the others take one step"""
    step_decay: float = 0.8
    """weight of each further step's loss relative to the one before"""
    vocabulary: int = 8192
    """tokens that the head knows, the most frequent ones [tokens]"""
    seed: int = 0
    """seed of the weights and of the order of the batches"""


@dataclass(frozen=True)
class Batch:
    """Conversations of like length, padded on the right."""

    tokens: torch.Tensor
    """token ids of the rows, `int64[batch, rows]`"""
    features: torch.Tensor
    """the target's state before each row's token, `[batch, rows, hidden]`"""
    teacher_ids: torch.Tensor
    """the target's most probable tokens after each row, in the trimmed vocabulary, `int64[batch, rows, top]`"""
    teacher_probs: torch.Tensor
    """their probabilities; 0 outside the trimmed vocabulary and in padding, `float32[batch, rows, top]`"""


def frequent_tokens(lessons: Sequence[Lesson], vocabulary: int, size: int) -> tuple[torch.Tensor, float]:
    """The `size` most frequent tokens in id order, `int64[size]`, and the share of the text that they cover."""
    counts = torch.zeros(vocabulary, dtype=torch.int64)
    for lesson in lessons:
        counts += torch.bincount(lesson.tokens, minlength=vocabulary)
    chosen = counts.argsort(descending=True, stable=True)[:size].sort().values
    return chosen, float(counts[chosen].sum() / counts.sum())


def new_network(target: PreTrainedModel, token_ids: torch.Tensor, seed: int) -> FeatureDraftNetwork:
    """A network for `target` whose head begins as the target's own, cut to `token_ids`."""
    torch.manual_seed(seed)
    config = target.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    network = FeatureDraftNetwork(
        FeatureDraftConfig(
            config.hidden_size, config.num_attention_heads, kv_heads, head_dim, config.intermediate_size, len(token_ids)
        )
    )
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    with torch.no_grad():
        for output in (network.attention_output, network.down):
            output.weight.mul_(0.5)  # a calm start: the residual stream dominates
        network.head.weight.copy_(target.get_output_embeddings().weight[token_ids].float())
        norm = getattr(target.get_decoder(), "norm", None)
        if norm is not None:
            network.output_norm.weight.copy_(norm.weight.float())
    network.token_ids.copy_(token_ids)
    return network


def trimmed_index(token_ids: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Index in the trimmed vocabulary of each of the target's tokens, -1 outside it, `int64[vocabulary]`."""
    trimmed = torch.full((vocabulary,), -1, dtype=torch.int64)
    trimmed[token_ids] = torch.arange(len(token_ids))
    return trimmed


def plan_batches(lengths: Sequence[int], batch_tokens: int, seed: int) -> list[list[int]]:
    """Indices of conversations of like length, in random order: every conversation in one batch."""
    generator = torch.Generator().manual_seed(seed)
    jitter = (24 * torch.rand(len(lengths), generator=generator)).tolist()
    groups: list[list[int]] = [[]]
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index] + jitter[index]):
        if groups[-1] and (len(groups[-1]) + 1) * lengths[index] > batch_tokens:
            groups.append([])
        groups[-1].append(index)
    return [groups[group] for group in torch.randperm(len(groups), generator=generator).tolist()]


def collate(lessons: Sequence[Lesson], trimmed: torch.Tensor) -> Batch:
    """Pads lessons to a batch.

    Args:
        lessons: conversations.
        trimmed: index in the trimmed vocabulary of each of the target's tokens, -1 outside it, `int64[vocabulary]`.
    """
    ids = pad_sequence([lesson.teacher_ids[1:].long() for lesson in lessons], batch_first=True)
    probs = pad_sequence(
        [lesson.teacher_log_probs[1:].float() for lesson in lessons], batch_first=True, padding_value=-math.inf
    ).exp()
    ids = trimmed[ids]
    return Batch(
        pad_sequence([lesson.tokens[1:] for lesson in lessons], batch_first=True),
        pad_sequence([lesson.features[:-1] for lesson in lessons], batch_first=True).float(),
        ids.clamp(min=0),
        probs * (ids >= 0),
    )


def train(
    network: FeatureDraftNetwork,
    embedding: nn.Embedding,
    lessons: Sequence[Lesson],
    config: TrainingConfig,
    log: Callable[[int, int, list[float]], None],
) -> None:
    """Trains `network` in place, in bfloat16 with float32 weights.

    Args:
        network: see `new_network`.
        embedding: the target's token embedding, which is not trained.
        lessons: what to learn from.
        config: how.
        log: called after every batch with its number, the number of batches, and the loss of each step.
    """
    device = embedding.weight.device
    network.to(device).train()
    trimmed = trimmed_index(network.token_ids.cpu(), embedding.num_embeddings)
    lengths = [len(lesson.tokens) for lesson in lessons]
    plan = [
        group
        for epoch in range(config.epochs)
        for group in plan_batches(lengths, config.batch_tokens, config.seed + epoch)
    ]
    optimizer = torch.optim.AdamW(
        network.parameters(), config.learning_rate, (0.9, 0.95), weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: _rate(update / len(plan), config.warm_up))
    for update, group in enumerate(plan):
        batch = collate([lessons[index] for index in group], trimmed)
        losses = _losses(network, embedding, batch, config.steps if update % 2 else 1)
        weights = [config.step_decay**step for step in range(len(losses))]
        loss = torch.stack(losses) @ torch.tensor(weights, device=device) / sum(weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        log(update + 1, len(plan), [float(value.detach()) for value in losses])


def _rate(done: float, warm_up: float) -> float:
    """Factor of the learning rate after a share `done` of the updates: a linear rise, then a cosine to 0.01."""
    if done < warm_up:
        return done / warm_up + 1e-3
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


def _losses(network: FeatureDraftNetwork, embedding: nn.Embedding, batch: Batch, steps: int) -> list[torch.Tensor]:
    """Mean cross-entropy to the teacher's distribution at each step."""
    device = embedding.weight.device
    ids, probs = batch.teacher_ids.to(device), batch.teacher_probs.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        embedded = embedding(batch.tokens.to(device)).detach().to(torch.bfloat16)
        losses = []
        for step, output in enumerate(rollout(network, embedded, batch.features.to(device), steps)):
            rows = probs[:, step:].sum(-1) > 0  # [batch, rows]: neither padding nor an early row without meaning
            logits = network.head(output[:, step:][rows])
            likelihood = logits.float().log_softmax(-1).gather(-1, ids[:, step:][rows])
            losses.append(-(probs[:, step:][rows] * likelihood).sum(-1).mean())
    return losses

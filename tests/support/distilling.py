"""Conversations, labelled texts and drafts at work step by step, for the tests of distillation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from specgym.agents.distillation import pipeline
from specgym.agents.distillation.data import teacher
from specgym.agents.distillation.data.corpus import KINDS, LabelledText, load_texts, shard_path, text_shard, write_shard
from specgym.agents.distillation.data.generation import Conversation
from specgym.agents.distillation.data.teacher import Teacher
from specgym.agents.distillation.distillation_config import (
    CausalShape,
    DistillationConfig,
    FeatureShape,
    GenerationConfig,
    TrainingConfig,
)
from specgym.env.drafts import FeatureDraft
from specgym.env.models.target import TargetModel
from specgym.env.tree.sampling import SamplingSettings, TokenChooser
from specgym.env.tree.tree import TokenTree
from tests.support.tiny_models import VOCABULARY
from tests.support.tiny_pair import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
BEFORE = TOKENIZER.encode("<|im_start|>user\n")
AFTER = TOKENIZER.encode("\n<|im_start|>assistant\n")
FEATURE_SHAPES = [(layers, fused) for layers in (1, 2) for fused in ((), (0,), (0, 1))]
"""decoder layers of a feature draft, and the target's layers that it reads besides the last state"""

TRAINING = TrainingConfig(epochs=2, batch_tokens=256, learning_rate=1e-2, evaluations=2)
FEATURE = DistillationConfig(
    "feature",
    GenerationConfig(
        conversations=150, slots=50, max_user_tokens=12, max_text_tokens=12, max_answer_tokens=24, given_share=0.0
    ),
    feature=FeatureShape(vocabulary=80),
    feature_training=TRAINING,
    causal=CausalShape(hidden_size=32, layers=2, heads=4, intermediate_size=64, vocabulary=80, rare_tokens=10),
    causal_training=TRAINING,
    shard_conversations=75,
    held_out=6,
    test_prompts=(),
)
CONFIGS = {"feature": FEATURE, "causal": replace(FEATURE, kind="causal")}
"""a small distillation of each kind of draft, which may share a folder"""

_NO_NODES = np.empty(0, np.int64)


def make_conversation(length: int, seed: int, answer_start: int = 1) -> Conversation:
    """Returns a conversation of random tokens; its prompt hash is the seed."""
    tokens = np.random.default_rng(seed).integers(0, VOCABULARY, length).astype(np.int32)
    return Conversation(tokens, min(answer_start, length - 1), 0.0, KINDS[seed % len(KINDS)], seed)


def label_random_texts(
    model: PreTrainedModel, lengths: Sequence[int], folder: Path, layers: Sequence[int] = ()
) -> list[LabelledText]:
    """Returns labelled texts of random tokens and of these lengths; each one's seed and prompt hash is its number."""
    return label_texts(model, [make_conversation(length, seed) for seed, length in enumerate(lengths)], folder, layers)


def label_texts(
    model: PreTrainedModel, conversations: Sequence[Conversation], folder: Path, layers: Sequence[int] = ()
) -> list[LabelledText]:
    """Writes conversations and their labels by `model` to a run folder, and reads them again."""
    write_labelled(folder, model, conversations, layers=layers)
    return list(load_texts(folder))


def write_labelled(
    folder: Path,
    model: PreTrainedModel,
    conversations: Sequence[Conversation],
    number: int = 0,
    layers: Sequence[int] = (),
) -> None:
    """Writes a text shard and its state shard."""
    shard = text_shard(conversations)
    write_shard(shard_path(folder, "text", number), shard)
    write_shard(shard_path(folder, "states", number), label_shard(model, shard, layers))


def label_shard(
    model: PreTrainedModel, shard: dict[str, torch.Tensor], layers: Sequence[int] = (), **options: Any
) -> dict[str, torch.Tensor]:
    """Returns the states of a text shard, with `model` as the teacher."""
    return Teacher(model, layers).states(shard["tokens"], shard["starts"].tolist(), **options)


@contextlib.contextmanager
def nothing_on_device() -> Iterator[None]:
    """Within the block, training from states in the device's memory fails."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("these states do not belong on the device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "DeviceDataset", refuse)
        patch.setattr(teacher, "dataset_room", refuse)
        yield


def target_features(target: TargetModel, tokens: Sequence[int], layers: tuple[int, ...] = ()) -> torch.Tensor:
    """Returns the target's hidden states of a text, `[tokens, width]`."""
    target.cache.reset()
    target.show_features(layers)
    target.extend(tokens)
    assert target.features is not None
    return target.features


class ChainAtWork:
    """A feature draft as decoding uses it, on a text that the target accepts token by token.

    Args:
        draft: the draft.
        tokens: the text.
        features: the target's states at each of its tokens, `[tokens or fewer, width]`.
    """

    def __init__(self, draft: FeatureDraft, tokens: Sequence[int], features: torch.Tensor) -> None:
        self.draft, self.tokens, self.features = draft, tokens, features
        self.committed = 0
        draft.start(TokenChooser(SamplingSettings(), VOCABULARY, features.device))

    def commit(self, until: int) -> None:
        """Commits the text before `until`. Each token has the target's features before it, except the first."""
        fresh = self.tokens[self.committed : until]
        self.draft.commit(fresh, self.features[max(self.committed - 1, 0) : until - 1], _NO_NODES)
        self.committed = until

    def guesses(self, steps: int) -> list[dict[int, float]]:
        """Returns log-probabilities of all the draft's tokens, best first, after the root and after each of the next
        `steps` - 1 tokens of the text.
        """
        tree = TokenTree(self.tokens[self.committed - 1])
        node = np.zeros(1, np.int64)
        made = []
        for step in range(steps):
            if step:
                node = tree.add(node, np.array([self.tokens[self.committed + step - 1]], np.int64), np.zeros(1))
            candidates = self.draft.expand(tree, node, VOCABULARY)
            made.append(dict(zip(candidates.tokens[0].tolist(), candidates.log_probs[0].tolist(), strict=True)))
        return made


def guesses_at_work(draft: FeatureDraft, text: LabelledText, position: int, step: int) -> dict[int, float]:
    """Returns the draft's log-probabilities at a position if the committed text ends `step` tokens before it."""
    work = ChainAtWork(draft, text.tokens.tolist(), text.features.to(draft.dtype))
    work.commit(position - step)
    return work.guesses(step + 1)[-1]


def written(folder: Path, pattern: str = "*.safetensors") -> dict[str, int]:
    """Returns when each file was written [ns]."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob(pattern))}

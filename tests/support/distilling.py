"""Promises of `agents`, and what their tests share: conversations, lessons, and drafts at work step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from specgym.agents.distillation.data.corpus import KINDS, Lesson, TextShard, load_lessons, shard_path, write_shard
from specgym.agents.distillation.data.generation import Conversation, GenerationConfig
from specgym.agents.distillation.data.teacher import teacher_states
from specgym.agents.distillation.model.draft_shapes import CausalShape, FeatureShape
from specgym.agents.distillation.pipeline import DistillationConfig
from specgym.agents.distillation.training.trainer import TrainingConfig
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

TRAINING = TrainingConfig(epochs=2, batch_tokens=256, learning_rate=1e-2, looks=2)
FEATURE = DistillationConfig(
    "feature",
    GenerationConfig(
        conversations=150, slots=50, max_user_tokens=12, max_text_tokens=12, max_answer_tokens=24, given_share=0.0
    ),
    feature=FeatureShape(vocabulary=80),
    feature_training=TRAINING,
    causal=CausalShape(hidden_size=32, layers=2, heads=4, intermediate_size=64, vocabulary=80, strangers=10),
    causal_training=TRAINING,
    shard_conversations=75,
    held_out=6,
    exams=(),
)
CONFIGS = {"feature": FEATURE, "causal": replace(FEATURE, kind="causal")}
"""a small distillation of each kind of draft, which may share a folder"""

_NO_NODES = np.empty(0, np.int64)


def make_conversation(length: int, seed: int, answer_start: int = 1) -> Conversation:
    """A conversation of random tokens; its prompt hash is the seed."""
    tokens = np.random.default_rng(seed).integers(0, VOCABULARY, length).astype(np.int32)
    return Conversation(tokens, min(answer_start, length - 1), 0.0, KINDS[seed % len(KINDS)], seed)


def make_lessons_of(
    model: PreTrainedModel, lengths: Sequence[int], folder: Path, layers: Sequence[int] = ()
) -> list[Lesson]:
    """Lessons of random tokens and of these lengths; the seed and the prompt hash of each is its number."""
    return make_lessons(model, [make_conversation(length, seed) for seed, length in enumerate(lengths)], folder, layers)


def make_lessons(
    model: PreTrainedModel, conversations: Sequence[Conversation], folder: Path, layers: Sequence[int] = ()
) -> list[Lesson]:
    """Conversations as the pipeline turns them into lessons, with `model` as the teacher."""
    shard = TextShard.of(conversations)
    write_shard(shard_path(folder, "text", 0), shard.tensors())
    write_shard(shard_path(folder, "states", 0), teacher_states(model, shard, layers))
    return list(load_lessons(folder))


def target_features(target: TargetModel, tokens: Sequence[int], layers: tuple[int, ...] = ()) -> torch.Tensor:
    """What the target shows on the way through a text, `[tokens, width]`."""
    target.cache.reset()
    target.show_features(layers)
    target.extend(tokens)
    assert target.features is not None
    return target.features


class ChainAtWork:
    """A feature draft as the engine uses it, on text that the target accepts token by token.

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
        """Settles the text before `until`; the features are the target's before each token, the first has none."""
        fresh = self.tokens[self.committed : until]
        self.draft.commit(fresh, self.features[max(self.committed - 1, 0) : until - 1], _NO_NODES)
        self.committed = until

    def guesses(self, steps: int) -> list[dict[int, float]]:
        """Log-probabilities of all the draft's tokens, best first, after the root and after each of the `steps` - 1
        tokens of the text that follow it.
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


def guesses_at_work(draft: FeatureDraft, lesson: Lesson, position: int, step: int) -> dict[int, float]:
    """What the draft expects at a position of the lesson when the target's text ended `step` tokens before it."""
    work = ChainAtWork(draft, lesson.tokens.tolist(), lesson.features.to(draft.dtype))
    work.commit(position - step)
    return work.guesses(step + 1)[-1]


def written(folder: Path, pattern: str = "*.safetensors") -> dict[str, int]:
    """When each file was written."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob(pattern))}

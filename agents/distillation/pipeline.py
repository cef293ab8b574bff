"""From a target to a trained feature draft, in stages that leave what they made in a run folder.

Text and states are shards; a shard that is there is not made again, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agents.distillation.agreement import Agreement, measure_agreement
from agents.distillation.corpus import Lesson, TextShard, load_lessons, read_shard, shard_path, write_shard
from agents.distillation.generation import Conversation, GenerationConfig, SelfDialogue
from agents.distillation.states import teacher_states
from agents.distillation.training import TrainingConfig, frequent_tokens, new_network, train
from env.drafts.network import FeatureDraftNetwork
from env.errors import ParameterError

__all__ = ["Distillation", "DistillationConfig", "Graduate"]

Progress = Callable[[str, int, int], None]
"""`progress(stage, done, total)`"""


@dataclass(frozen=True)
class DistillationConfig:
    """Everything that decides what comes out."""

    generation: GenerationConfig = field(default_factory=GenerationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    shard_tokens: int = 100_000
    """tokens of a text shard, the unit that an interrupted run repeats [tokens]"""
    held_out: int = 20
    """every n-th conversation is kept from training, to measure agreement on"""


@dataclass(frozen=True)
class Graduate:
    """A trained draft and how well it does on conversations it has never seen."""

    network: FeatureDraftNetwork
    coverage: float
    """share of the training text that the trimmed vocabulary covers"""
    training_tokens: int
    """tokens of the training text, each seen `epochs` times [tokens]"""
    agreement: dict[str, Agreement]
    """on held-out answers: ``all`` of them, and by the ``greedy`` or ``sampled`` way they were decoded"""


class Distillation:
    """Teaches a feature draft to guess what a target says.

    Args:
        model: the target, a chat model.
        tokenizer: its tokenizer.
        folder: the run folder.
        config: how.
        progress: told how far a stage is.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        config: DistillationConfig,
        progress: Progress = lambda stage, done, total: None,
    ) -> None:
        self.model, self.tokenizer, self.folder, self.config = model, tokenizer, folder, config
        self.progress = progress

    def run(self) -> Graduate:
        """All stages.

        Raises:
            FileWriteError: a shard could not be written.
            ModelFileError: a shard is corrupt.
            ParameterError: too little text to hold any of it out.
        """
        self.write_text()
        self.record_states()
        return self.train()

    def write_text(self) -> None:
        """Lets the target write; a shard has a seed of its own, so it is the same whenever it is made."""
        generation, size = self.config.generation, self.config.shard_tokens
        for number, start in enumerate(range(0, generation.tokens, size)):
            path = shard_path(self.folder, "text", number)
            tokens = min(size, generation.tokens - start)
            if not path.exists():
                config = dataclasses.replace(generation, tokens=tokens, seed=generation.seed + number)
                write_shard(path, TextShard.of(self._conversations(config, start)).tensors())
            self.progress("writing text", start + tokens, generation.tokens)

    def _conversations(self, config: GenerationConfig, before: int) -> list[Conversation]:
        conversations, written = [], before
        for conversation in SelfDialogue(self.model, self.tokenizer, config).conversations():
            conversations.append(conversation)
            written += len(conversation.tokens)
            self.progress("writing text", written, self.config.generation.tokens)
        return conversations

    def record_states(self) -> None:
        """Asks the teacher about every position."""
        paths = sorted(self.folder.glob("text-*.safetensors"))
        for number, path in enumerate(paths):
            states = shard_path(self.folder, "states", number)
            if not states.exists():
                write_shard(states, teacher_states(self.model, TextShard(**read_shard(path))))
            self.progress("asking the teacher", number + 1, len(paths))

    def train(self) -> Graduate:
        """Trains on all conversations but the held-out ones and measures agreement on those."""
        lessons = list(load_lessons(self.folder))
        held_out = lessons[:: self.config.held_out]
        seen = [lesson for index, lesson in enumerate(lessons) if index % self.config.held_out]
        if not held_out or not seen:
            raise ParameterError(f"Expected {self.config.held_out} conversations or more; got {len(lessons)}.")
        config, vocabulary = self.config.training, self.model.get_input_embeddings().num_embeddings
        token_ids, coverage = frequent_tokens(seen, vocabulary, min(config.vocabulary, vocabulary))
        network = new_network(self.model, token_ids, config.seed)
        train(network, self.model.get_input_embeddings(), seen, config, self._log)
        return Graduate(
            network, coverage, sum(len(lesson.tokens) for lesson in seen), self._agreement(network, held_out)
        )

    def _log(self, update: int, updates: int, losses: list[float]) -> None:
        self.progress(f"training, loss {losses[0]:.3f}", update, updates)

    def _agreement(self, network: FeatureDraftNetwork, held_out: list[Lesson]) -> dict[str, Agreement]:
        embedding = self.model.get_input_embeddings()
        parts = {
            "all": held_out,
            "greedy": [lesson for lesson in held_out if lesson.temperature == 0],
            "sampled": [lesson for lesson in held_out if lesson.temperature > 0],
        }
        return {name: measure_agreement(network, embedding, part) for name, part in parts.items() if part}

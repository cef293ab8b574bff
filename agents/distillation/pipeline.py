"""From a target to a trained draft, in stages that leave their results in a run folder.

Texts and teacher states are shards, and training has a checkpoint. What exists is not made again, so an interrupted run
continues where it stopped.
"""

from __future__ import annotations

import itertools
import json
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specgym.agents.distillation.data import corpus
from specgym.agents.distillation.data.corpus import LabelledText, frequent_tokens
from specgym.agents.distillation.data.generation import SelfDialogue
from specgym.agents.distillation.data.prompt_templates import KINDS, Turn
from specgym.agents.distillation.data.teacher import DeviceDataset, Teacher, fits_on_device
from specgym.agents.distillation.distillation_config import DistillationConfig
from specgym.agents.distillation.examination.agreement import Examination, bfloat16_agreement, examine
from specgym.agents.distillation.model.draft_shapes import check_fit, new_causal, new_network
from specgym.agents.distillation.model.students import CausalStudent, FeatureStudent, Student, layer_scales
from specgym.agents.distillation.training.captured import CapturedTrainer
from specgym.agents.distillation.training.trainer import Curves, History, Trainer
from specgym.env.common.errors import ModelFileError, ParameterError, PromptError
from specgym.env.common.files import write_text
from specgym.env.common.reading import WRONG_VALUES, read_json
from specgym.env.decoding.pair import encode_chat
from specgym.env.models.hub.context import context_limit
from specgym.env.models.states import HiddenStates
from specgym.env.prompts import load_prompts

Progress = Callable[[str, int, int], None]
"""`progress(stage, done, total)`"""

_EVALUATED = 40  # held-out texts that agreement is measured on during training


@dataclass(frozen=True)
class DistilledDraft:
    """A trained draft and its results on prompts that it has not seen."""

    student: Student
    coverage: float
    """share of the training text that the frequent tokens cover"""
    training_tokens: int
    """tokens of the training text, each seen `epochs` times [tokens]"""
    kinds: dict[str, int]
    """tokens of the training text by kind of task [tokens]"""
    examination: Examination
    """agreement and calibrator"""
    history: History
    """losses and agreement during training"""


class RunFolder:
    """Writes and reads the data of a run.

    Args:
        model: the target, a chat model.
        tokenizer: its tokenizer.
        path: the run folder.
        config: settings of the run.
        weights: description of the target's weights; a run folder of other weights is refused.
        progress: called with the progress of a stage.

    Raises:
        ModelFileError: the draft to train further cannot be read.
        PairError: the tokenizer has no chat template, the target lacks a layer that the draft reads, or the draft to
            train further does not fit.
        ParameterError: the draft is wider than the target.
        PromptError: the test prompts cannot be read or fetched, or are all too long.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        path: Path,
        config: DistillationConfig,
        *,
        weights: str = "",
        progress: Progress = lambda stage, done, total: None,
    ) -> None:
        self.model, self.tokenizer, self.path, self.config = model, tokenizer, path, config
        self.weights, self.progress = weights, progress
        # What the target cannot do is refused before any work.
        self.dialogue = SelfDialogue(model, tokenizer, config.generation)
        HiddenStates(model, config.feature_layers).close()
        check_fit(model, config)
        self.test_turns = {source: self._turns(source) for source in config.test_prompts}

    def write_text(self) -> None:
        """Lets the target write. A shard has a seed of its own, so its content does not depend on when it is made.

        Raises:
            ModelFileError: the folder's settings cannot be read.
            ParameterError: the folder holds text that was made with other settings.
        """
        self._claim()
        generation, size = self.config.generation, self.config.shard_conversations
        for number, start in enumerate(range(0, generation.conversations, size)):
            path = corpus.shard_path(self.path, "text", number)
            count = min(size, generation.conversations - start)
            # The last shard of a shorter run holds too few.
            if not corpus.is_intact(path) or len(corpus.read_shard(path)["answer_starts"]) < count:
                config = replace(generation, conversations=count, seed=generation.seed + number)
                conversations = []
                for conversation in SelfDialogue(self.model, self.tokenizer, config).conversations():
                    conversations.append(conversation)
                    self.progress("writing text", start + len(conversations), generation.conversations)
                for outdated in self.path.glob(f"states*-{number:04d}.safetensors"):
                    outdated.unlink()
                corpus.write_shard(path, corpus.text_shard(conversations))
            self.progress("writing text", start + count, generation.conversations)

    def record_states(self) -> None:
        """Lets the teacher label every position, if its states are to be stored."""
        if not self.config.keep_states:
            return
        paths = sorted(self.path.glob("text-*.safetensors"))
        for number, path in enumerate(paths):
            self._record(path, corpus.shard_path(self.path, self._states_name, number))
            self.progress("labelling text", number + 1, len(paths))

    def split(self) -> tuple[list[LabelledText], list[LabelledText]]:
        """Returns the texts to train on and the held-out ones, split by prompt.

        Raises:
            ParameterError: there is nothing to train on, or fewer than two prompts are held out.
        """
        stored = self.config.keep_states
        texts = corpus.load_texts(self.path, self._states_name if stored else None)
        training, held_out = corpus.split_texts(texts, self.config.held_out)
        # One prompt is needed to fit the calibrator and one to measure on.
        if not training or len({text.prompt_hash for text in held_out}) < 2:
            raise ParameterError(
                f"Expected text enough to hold one prompt in {self.config.held_out} out, and two at least; got "
                f"{len(training) + len(held_out)} conversations."
            )
        if not stored:
            teacher = self._teacher
            for index, text in enumerate(held_out):
                labels: dict[str, Any] = teacher.states(text.tokens, [0, len(text.tokens)])
                held_out[index] = replace(text, **labels)
        return training, held_out

    def test_texts(self) -> dict[str, list[LabelledText]]:
        """Returns the target's greedy answers to the test prompts by their source, with labels."""
        texts = {}
        for source, turns in self.test_turns.items():
            name = f"exam-{Path(source).stem}"
            path, states = (corpus.shard_path(self.path, part, 0) for part in (name, f"{name}-{self._states_name}"))
            if not corpus.is_intact(path):
                corpus.write_shard(path, corpus.text_shard(list(self.dialogue.answers(turns))))
            self._record(path, states)
            texts[source] = list(corpus.read_texts(path, states))
        return texts

    def teach(self, texts: Sequence[LabelledText]) -> Sequence[LabelledText]:
        """Labels the texts of a batch, unless labels are stored."""
        return texts if self.config.keep_states else self._teacher.label(texts)

    @property
    def _teacher(self) -> Teacher:
        """The teacher, which records the states that the draft reads.

        A draft that reads the last one alone makes do with any states that are there, as they all include it.
        """
        return Teacher(self.model, self.config.feature_layers or corpus.recorded_layers(self.path))

    @property
    def _states_name(self) -> str:
        """Name of the state shards of the teacher's layers."""
        return "-".join(["states", *map(str, self._teacher.layers)])

    def _record(self, text: Path, states: Path) -> None:
        """Writes the state shard of a text shard, unless it is there and undamaged."""
        if not corpus.is_intact(states):
            shard = corpus.read_shard(text)
            corpus.write_shard(states, self._teacher.states(shard["tokens"], shard["starts"].tolist()))

    def _turns(self, source: str) -> list[Turn]:
        """Returns the first turns of those prompts that leave room for an answer."""
        limit = context_limit(self.model.config) - self.config.generation.max_answer_tokens
        texts = [prompt.turns[0] for prompt in load_prompts(source)]
        texts = [text for text in texts if len(encode_chat(self.tokenizer, [text])) < limit]
        if not texts:
            raise PromptError(f"{source} holds no prompt that leaves the target room for an answer: leave it out.")
        return [Turn(KINDS[0], text, text, open=False, long=False) for text in texts]  # the kind is not used

    def _claim(self) -> None:
        """Writes the settings of the text to the folder, or compares them with those that are there."""
        settings = asdict(self.config.generation) | {
            "shard_conversations": self.config.shard_conversations,
            "weights": self.weights,
            "python": platform.python_version(),  # given texts come from its library
        }
        del settings["conversations"]  # a run may be lengthened
        path = self.path / "run.json"
        if not path.exists():
            write_text(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")
            return
        try:
            stored = dict(read_json(path))
        except (OSError, *WRONG_VALUES) as error:
            raise ModelFileError(f"{path} is unreadable ({error}). Restore it or choose another run folder.") from error
        differing = [name for name in {**settings, **stored} if settings.get(name) != stored.get(name)]
        if differing:
            ours, theirs = (json.dumps({name: part.get(name) for name in differing}) for part in (settings, stored))
            raise ParameterError(
                f"{path} is of text that was written with other settings: expected {ours},\ngot {theirs}.\n"
                "Choose another run folder, or the settings of the first run."
            )


class Distillation(RunFolder):
    """Trains a draft to guess the target's next tokens from the texts and labels of a run folder."""

    def run(self) -> DistilledDraft:
        """Runs all stages.

        Raises:
            FileWriteError: a file of the run could not be written.
            ModelFileError: a shard or the checkpoint is corrupt.
            ParameterError: too little text to hold any of it out, or the folder holds a run with other settings.
        """
        self.write_text()
        self.record_states()
        return self.train()

    def train(self) -> DistilledDraft:
        """Trains on all prompts except the held-out ones and measures agreement on those."""
        training, held_out = self.split()
        student, coverage = self._new_student(training)
        history = self._learn(student, training, held_out[:_EVALUATED])
        kinds = Counter(itertools.chain.from_iterable([text.kind] * len(text.tokens) for text in training))
        self.progress("examining", 0, 1)
        examination = examine(student, held_out, self.test_texts())
        return DistilledDraft(student, coverage, kinds.total(), dict(kinds), examination, history)

    def _new_student(self, texts: list[LabelledText]) -> tuple[Student, float]:
        """Returns the draft before training, and the share of the text that its frequent tokens cover."""
        config, training, embedding = self.config, self.config.training, self.model.get_input_embeddings()
        shape = config.feature if config.kind == "feature" else config.causal
        frequent, coverage = frequent_tokens(texts, embedding.num_embeddings, shape.vocabulary)
        if config.kind == "causal":
            causal = new_causal(self.model, frequent, config.causal, training.seed)
            return CausalStudent(causal, frequent, config.causal.rare_tokens, training.seed), coverage
        network = new_network(self.model, frequent, config.feature, training.seed)
        scales = layer_scales(texts, self.teach, len(config.feature_layers), embedding.embedding_dim)
        return FeatureStudent(network, embedding, training.steps, scales), coverage

    def _learn(self, student: Student, texts: list[LabelledText], held_out: list[LabelledText]) -> History:
        """Trains a student. The trainer's memory is free again afterwards."""
        trainer = self._trainer(student, texts)
        with Curves(self.path / f"{self.config.kind}-curves", trainer.history.updates) as curves:

            def log(history: History, updates: int) -> None:
                curves.log(history)
                self.progress(f"training, loss {history.losses[-1][0]:.3f}", history.updates, updates)

            history = trainer.run(lambda: list(bfloat16_agreement(student, held_out).top1), log)
            curves.draw(history)
        return history

    def _trainer(self, student: Student, texts: list[LabelledText]) -> Trainer:
        """Returns a trainer; one from a dataset on the device, if that is wanted and there is enough memory."""
        config, checkpoint = self.config, self.path / f"{self.config.kind}.checkpoint.safetensors"
        settings = config.learning_settings()
        if isinstance(student, FeatureStudent) and student.scales is not None:
            settings["scales"] = student.scales.tolist()[:: student.embedding.embedding_dim]
        identity, wanted = json.dumps(settings, sort_keys=True), config.states_on_device
        teacher, total = Teacher(self.model, config.feature_layers), sum(len(text.tokens) for text in texts)
        if not (isinstance(student, FeatureStudent) and wanted and fits_on_device(teacher, total)):
            return Trainer(student, texts, config.training, checkpoint, identity, teach=self.teach, padded=wanted)

        def new_dataset() -> DeviceDataset:
            tokens = [text.tokens for text in texts]
            return DeviceDataset(teacher, tokens, lambda done: self.progress("labelling text", done, total))

        return CapturedTrainer(student, texts, config.training, new_dataset, checkpoint=checkpoint, settings=identity)

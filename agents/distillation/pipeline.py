"""From a target to a trained draft, in stages that leave what they made in a run folder.

Text and teacher states are shards, training has a checkpoint: what is there is not made again, so an interrupted run
goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specgym.agents.distillation.data.batches import frequent_tokens
from specgym.agents.distillation.data.corpus import (
    Lesson,
    TextShard,
    load_lessons,
    read_lessons,
    read_shard,
    read_texts,
    recorded_layers,
    shard_path,
    split_lessons,
    write_shard,
)
from specgym.agents.distillation.data.device_dataset import DeviceDataset, shelf_bytes, shelf_room
from specgym.agents.distillation.data.generation import Conversation, GenerationConfig, SelfDialogue
from specgym.agents.distillation.data.prompt_templates import KINDS, Turn
from specgym.agents.distillation.data.teacher import Teacher, teacher_states
from specgym.agents.distillation.examination.agreement import agreement_at_work
from specgym.agents.distillation.examination.examine import Examination, examine
from specgym.agents.distillation.model.draft_shapes import (
    CausalShape,
    FeatureShape,
    check_width,
    load_earlier,
    new_causal,
    new_network,
)
from specgym.agents.distillation.model.scales import layer_scales
from specgym.agents.distillation.model.students import CausalStudent, FeatureStudent, Student
from specgym.agents.distillation.training.curves import Curves
from specgym.agents.distillation.training.draft_checkpoint import History
from specgym.agents.distillation.training.trainer import Trainer, TrainingConfig
from specgym.env.common.errors import ParameterError, PromptError
from specgym.env.common.files import write_text
from specgym.env.decoding.pair import encode_chat
from specgym.env.models.hub.compatibility import context_limit
from specgym.env.models.states import HiddenStates
from specgym.env.prompts import BUILTIN_SOURCES, load_prompts
from specgym.env.tree.rounds import check_limit

Progress = Callable[[str, int, int], None]
"""`progress(stage, done, total)`"""

_LOOK = 40  # held-out conversations that are looked at during training


@dataclass(frozen=True)
class DistillationConfig:
    """Everything that decides what comes out; as it stands, for some hours on a CPU.

    The values that made a shipped draft stand beside it, in its ``training.json`` and in the command of its card.

    Raises:
        LimitError: a count that is not positive.
        ParameterError: another value outside its range.
    """

    kind: Literal["feature", "causal"] = "feature"
    """kind of draft: one that reads the target's hidden states, or a causal language model of its own"""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """the text"""
    feature: FeatureShape = field(default_factory=FeatureShape)
    """shape of a feature draft"""
    feature_training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=6, learning_rate=1.5e-3))
    """training of a feature draft"""
    causal: CausalShape = field(default_factory=CausalShape)
    """shape of a causal draft"""
    causal_training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=12, learning_rate=2e-3))
    """training of a causal draft"""
    keep_states: bool = True
    """whether the teacher is asked once and its states are kept on the disk, 1.4 KB a token; otherwise see `shelf`"""
    shelf: bool = True
    """whether states that are not kept on the disk are kept in the device's memory, for a feature draft and where they
    fit: batches come in few shapes then, and on a GPU each is learned from at one go. Otherwise the teacher is asked
    again for every batch, which needs no room and suits a device that reads text as fast as states are read"""
    shard_conversations: int = 500
    """conversations of a text shard, the unit that an interrupted run repeats"""
    held_out: int = 20
    """one prompt in so many is kept from training: a half to calibrate by, a half to measure on"""
    exams: tuple[str, ...] = BUILTIN_SOURCES
    """prompts, never trained on, whose greedy answers agreement is measured on besides; as for the benchmark"""

    def __post_init__(self) -> None:
        check_limit("shard_conversations", self.shard_conversations)
        if self.held_out < 2:
            raise ParameterError(f"held_out must be 2 or more; got {self.held_out}.")
        if self.kind not in ("feature", "causal"):
            raise ParameterError(f"kind must be feature or causal; got {self.kind!r}.")

    @property
    def training(self) -> TrainingConfig:
        """How the kind of draft that is wanted is trained."""
        return self.feature_training if self.kind == "feature" else self.causal_training


@dataclass(frozen=True)
class DistilledDraft:
    """A trained draft and how well it does on prompts it has never seen."""

    student: Student
    coverage: float
    """share of the training text that the frequent tokens cover"""
    training_tokens: int
    """tokens of the training text, each seen `epochs` times [tokens]"""
    kinds: dict[str, int]
    """tokens of the training text by kind of task [tokens]"""
    examination: Examination
    """its marks, and its calibrator"""
    history: History
    """how training went"""


class Distillation:
    """Teaches a draft to guess what a target says.

    Args:
        model: the target, a chat model.
        tokenizer: its tokenizer.
        folder: the run folder.
        config: how.
        weights: which weights `model` has; a run folder of other weights is refused.
        progress: told how far a stage is.

    Raises:
        PairError: the tokenizer has no chat template, the target none of the layers that the draft is to read, or the
            draft to train further does not fit.
        ModelFileError: the draft to train further cannot be read.
        ParameterError: the draft is wider than the target.
        PromptError: the prompts of an exam cannot be read or fetched, or are all too long.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        config: DistillationConfig,
        *,
        weights: str = "",
        progress: Progress = lambda stage, done, total: None,
    ) -> None:
        self.model, self.tokenizer, self.folder, self.config = model, tokenizer, folder, config
        self.weights, self.progress = weights, progress
        self.dialogue_settings = self._settings()
        # What the target cannot do is refused before any work.
        SelfDialogue(model, tokenizer, config.generation)
        if config.kind == "feature":
            HiddenStates(model, config.feature.feature_layers).close()
            load_earlier(model, config.feature)
        else:
            tokens = model.get_input_embeddings().num_embeddings
            check_width(model, min(config.causal.vocabulary, tokens), config.causal)
        self.exam_turns = {source: self._turns(source) for source in config.exams}

    def run(self) -> DistilledDraft:
        """All stages.

        Raises:
            FileWriteError: a file of the run could not be written.
            ModelFileError: a shard or the checkpoint is corrupt.
            ParameterError: too little text to hold any of it out, or the folder holds a run with other settings.
        """
        self.write_text()
        self.record_states()
        return self.train()

    def write_text(self) -> None:
        """Lets the target write; a shard has a seed of its own, so it is the same whenever it is made.

        Raises:
            ParameterError: the folder holds text that was made with other settings.
        """
        self._claim_folder()
        generation, size = self.config.generation, self.config.shard_conversations
        for number, start in enumerate(range(0, generation.conversations, size)):
            path = shard_path(self.folder, "text", number)
            count = min(size, generation.conversations - start)
            if not path.exists() or len(read_shard(path)["answer_starts"]) < count:  # the last one of a shorter run
                config = dataclasses.replace(generation, conversations=count, seed=generation.seed + number)
                text = TextShard.of(self._conversations(config, start))
                for outdated in self.folder.glob(f"states*-{number:04d}.safetensors"):
                    outdated.unlink()
                write_shard(path, text.tensors())
            self.progress("writing text", start + count, generation.conversations)

    def record_states(self) -> None:
        """Asks the teacher about every position, where its states are kept."""
        if not self.config.keep_states:
            return
        paths = sorted(self.folder.glob("text-*.safetensors"))
        for number, path in enumerate(paths):
            states = shard_path(self.folder, self._states, number)
            if not states.exists():
                self._record(path, states)
            self.progress("asking the teacher", number + 1, len(paths))

    def exams(self) -> dict[str, list[Lesson]]:
        """The target's greedy answers to the benchmark's prompts, of which none is trained on, by their source."""
        return {source: self._exam(source, turns) for source, turns in self.exam_turns.items()}

    def _turns(self, source: str) -> list[Turn]:
        """First turns of those prompts that leave room for an answer."""
        limit = context_limit(self.model.config) - self.config.generation.max_answer_tokens
        texts = [prompt.turns[0] for prompt in load_prompts(source)]
        texts = [text for text in texts if len(encode_chat(self.tokenizer, [text])) < limit]
        if not texts:
            raise PromptError(f"{source} holds no prompt that leaves the target room for an answer: leave it out.")
        return [Turn(KINDS[0], text, text, open=False, long=False) for text in texts]  # of whatever kind

    def _exam(self, source: str, turns: list[Turn]) -> list[Lesson]:
        name = f"exam-{Path(source).stem}"
        path, states = shard_path(self.folder, name, 0), shard_path(self.folder, f"{name}-{self._states}", 0)
        if not path.exists():
            dialogue = SelfDialogue(self.model, self.tokenizer, self.config.generation)
            write_shard(path, TextShard.of(list(dialogue.answers(turns))).tensors())
        if not states.exists():
            self._record(path, states)
        return list(read_lessons(path, states))

    def lessons(self) -> tuple[list[Lesson], list[Lesson]]:
        """What is trained on and what is held out, split by prompt.

        Raises:
            ParameterError: there is nothing to train on, or fewer than two prompts are held out.
        """
        kept = self.config.keep_states
        lessons = load_lessons(self.folder, self._states) if kept else read_texts(self.folder)
        seen, held_out = split_lessons(lessons, self.config.held_out)
        if not seen or len({lesson.prompt_hash for lesson in held_out}) < 2:  # one to calibrate by, one to measure on
            raise ParameterError(
                f"Expected text enough to hold one prompt in {self.config.held_out} out, and two at least; got "
                f"{len(seen) + len(held_out)} conversations."
            )
        return seen, held_out if kept else [lesson.kept() for each in held_out for lesson in self.teach([each])]

    def teach(self, lessons: Sequence[Lesson]) -> Sequence[Lesson]:
        """Lessons of a batch with what the teacher says of them, where it is not kept."""
        return lessons if self.config.keep_states else Teacher(self.model, self._layers).teach(lessons)

    def train(self) -> DistilledDraft:
        """Trains on all prompts but the held-out ones and measures agreement on those."""
        seen, held_out = self.lessons()
        student, coverage = self._student(seen)
        history = self._learn(student, seen, held_out[:_LOOK])
        kinds = {lesson.kind: 0 for lesson in seen}
        for lesson in seen:
            kinds[lesson.kind] += len(lesson.tokens)
        self.progress("examining", 0, 1)
        examination = examine(student, held_out, self.exams())
        return DistilledDraft(student, coverage, sum(kinds.values()), kinds, examination, history)

    def _learn(self, student: Student, seen: list[Lesson], looked_at: list[Lesson]) -> History:
        """Trains a student; what only training needs is given back at the end."""
        trainer = Trainer(
            student,
            seen,
            self.config.training,
            self.folder / f"{self.config.kind}.checkpoint.safetensors",
            self._course(student),
            teach=self.teach,
            padded=self._shelved,
            shelve=self._shelving(seen),
        )
        with Curves(self.folder / f"{self.config.kind}-curves", trainer.history.updates) as curves:

            def log(history: History, updates: int) -> None:
                curves.log(history)
                self.progress(f"training, loss {history.losses[-1][0]:.3f}", history.updates, updates)

            history = trainer.run(lambda: list(agreement_at_work(student, looked_at).top1), log)
            curves.draw(history)
        return history

    @property
    def _shelved(self) -> bool:
        """Whether states are to be kept in memory."""
        return self.config.kind == "feature" and self.config.shelf and not self.config.keep_states

    def _shelving(self, seen: list[Lesson]) -> Callable[[], DeviceDataset] | None:
        """What puts the lessons on a shelf, where that is wanted and there is room for it."""
        if not self._shelved:
            return None
        layers, device = self.config.feature.feature_layers, self.model.device
        total = sum(len(lesson.tokens) for lesson in seen)
        needed = shelf_bytes(total, (len(layers) + 1) * self.model.config.hidden_size)
        room = shelf_room(device)
        if needed > room:
            warnings.warn(
                f"The teacher's states would take {needed / 2**30:.1f} GiB of the device's memory, where they may take "
                f"{room / 2**30:.1f}: the teacher is asked for every batch, which is slower.",
                stacklevel=2,
            )
            return None
        done = 0

        def tell(tokens: int) -> None:
            nonlocal done
            done += tokens
            self.progress("asking the teacher", done, total)

        return lambda: DeviceDataset(Teacher(self.model, layers), [lesson.tokens for lesson in seen], tell)

    @property
    def _layers(self) -> tuple[int, ...]:
        """Layers of the target whose states are recorded besides the last one: those that the draft reads.

        A draft that reads none of them makes do with any states that are there, since the last one is always recorded.
        """
        layers = self.config.feature.feature_layers if self.config.kind == "feature" else ()
        return layers or recorded_layers(self.folder)

    @property
    def _states(self) -> str:
        """What shards of these states are called."""
        return "-".join(["states", *map(str, self._layers)])

    def _record(self, text: Path, states: Path) -> None:
        write_shard(states, teacher_states(self.model, TextShard(**read_shard(text)), self._layers))

    def _course(self, student: Student) -> str:
        """All settings that decide what is learned."""
        others = ("feature", "feature_training") if self.config.kind == "causal" else ("causal", "causal_training")
        settings = dataclasses.asdict(self.config)
        for name in (*others, "exams"):
            del settings[name]
        settings["shelf"] = self._shelved
        if isinstance(student, FeatureStudent) and student.scales is not None:
            settings["scales"] = student.scales.tolist()[:: student.embedding.embedding_dim]
        return json.dumps(settings, sort_keys=True)

    def _settings(self) -> str:
        generation = dataclasses.asdict(self.config.generation)
        del generation["conversations"]  # a run may be lengthened
        shard = {
            "shard_conversations": self.config.shard_conversations,
            "weights": self.weights,
            "python": platform.python_version(),  # given texts come from its library
        }
        return json.dumps(generation | shard, indent=2, sort_keys=True) + "\n"

    def _claim_folder(self) -> None:
        path = self.folder / "run.json"
        if not path.exists():
            write_text(path, self.dialogue_settings)
        elif (found := path.read_text(encoding="utf-8")) != self.dialogue_settings:
            raise ParameterError(
                f"{self.folder} holds text that was written with other settings. Expected:\n{self.dialogue_settings}"
                f"Got, from {path}:\n{found}Choose another run folder, or the settings of the first run."
            )

    def _conversations(self, config: GenerationConfig, before: int) -> list[Conversation]:
        conversations = []
        for conversation in SelfDialogue(self.model, self.tokenizer, config).conversations():
            conversations.append(conversation)
            self.progress("writing text", before + len(conversations), self.config.generation.conversations)
        return conversations

    def _student(self, seen: list[Lesson]) -> tuple[Student, float]:
        """The draft in its first state, and the share of the text that its frequent tokens cover."""
        config, training = self.config, self.config.training
        embedding = self.model.get_input_embeddings()
        size = config.feature.vocabulary if config.kind == "feature" else config.causal.vocabulary
        frequent, coverage = frequent_tokens(seen, embedding.num_embeddings, min(size, embedding.num_embeddings))
        if config.kind == "feature":
            network = new_network(self.model, frequent, config.feature, training.seed)
            fused = len(config.feature.feature_layers)
            scales = layer_scales(seen, self.teach, fused, embedding.embedding_dim)
            return FeatureStudent(network, embedding, training.steps, scales), coverage
        model = new_causal(self.model, frequent, config.causal, training.seed)
        return CausalStudent(model, frequent, config.causal.strangers, training.seed), coverage

"""Settings of a distillation. They need no model library, so that `--help` is printed at once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from specgym.env.common.errors import ParameterError, check_limit
from specgym.env.prompts import BUILTIN_SOURCES

_STORED_NAMES = {"device_states": "shelf", "evaluations": "looks", "rare_tokens": "strangers"}
"""names under which checkpoints know some settings"""


@dataclass(frozen=True)
class GenerationConfig:
    """Amount and kind of the text.

    Raises:
        LimitError: a count that is not positive.
        ParameterError: a share outside 0 and 1, or a negative temperature.
    """

    conversations: int = 1_500
    """conversations to write in all; one has about 300 tokens"""
    slots: int = 96
    """conversations decoded together [rows]"""
    max_user_tokens: int = 80
    """longest user turn, a given text not counted [tokens]"""
    max_text_tokens: int = 256
    """longest user turn where the target writes the text that the task is about [tokens]"""
    max_answer_tokens: int = 256
    """longest answer [tokens]"""
    user_temperature: float = 0.8
    """temperature of the user turns; at 1 a small model's questions fall apart"""
    greedy_share: float = 0.5
    """share of the answers decoded at temperature 0; the others are sampled at temperature 1"""
    given_share: float = 0.6
    """share of the tasks about a text that are given one from Python's library; the target writes the other texts"""
    seed: int = 1000
    """seed of openings, temperatures and sampling"""

    def __post_init__(self) -> None:
        counts = "conversations slots max_user_tokens max_text_tokens max_answer_tokens"
        _check("generation", self, counts, shares="greedy_share given_share", others="user_temperature")


@dataclass(frozen=True)
class FeatureShape:
    """Shape and first weights of a feature draft.

    Raises:
        LimitError: a count that is not positive.
        ParameterError: `begin` names no weights, or feature layers are out of order.
    """

    layers: int = 1
    """decoder layers"""
    feature_layers: tuple[int, ...] = ()
    """layers of the target, counted from 0, whose outputs are fused with its last hidden state"""
    vocabulary: int = 8192
    """most frequent tokens, which the head knows [tokens]"""
    begin: str = "random"
    """first weights: ``random``, the ``target``'s last layers, or the file of a feature draft to train further"""

    def __post_init__(self) -> None:
        _check("feature", self, "layers vocabulary")
        if list(self.feature_layers) != sorted(set(self.feature_layers)):
            raise ParameterError(f"feature.feature_layers must rise from one to the next; got {self.feature_layers}.")
        if self.begin not in ("random", "target") and self.earlier is None:
            raise ParameterError(
                f"feature.begin must be random, target or a .safetensors file that is there; got {self.begin!r}."
            )

    @property
    def earlier(self) -> Path | None:
        """The file of the draft to train further, if any."""
        path = Path(self.begin)
        return path if path.suffix == ".safetensors" and path.is_file() else None


@dataclass(frozen=True)
class CausalShape:
    """Shape of a standalone draft: a small Llama with the target's vocabulary.

    Raises:
        LimitError: a count that is not positive.
    """

    hidden_size: int = 160
    """width; most weights are in the embedding of the whole vocabulary, which is also the head [numbers]"""
    layers: int = 4
    """decoder layers"""
    heads: int = 5
    """attention heads"""
    intermediate_size: int = 448
    """width of the gated feed-forward part [numbers]"""
    vocabulary: int = 8192
    """most frequent tokens, whose logits every batch computes [tokens]"""
    rare_tokens: int = 1024
    """further tokens drawn for every batch, so that the draft learns that they are rare [tokens]"""

    def __post_init__(self) -> None:
        _check("causal", self, "hidden_size layers heads intermediate_size vocabulary rare_tokens")
        if self.hidden_size % self.heads or self.hidden_size // self.heads % 2:
            raise ParameterError(
                f"causal.hidden_size must be an even multiple of causal.heads; got {self.hidden_size} and {self.heads}."
            )


@dataclass(frozen=True)
class TrainingConfig:
    """How a draft is trained.

    Raises:
        LimitError: a count that is not positive.
        ParameterError: another value outside its range.
    """

    epochs: int = 6
    """number of times that every text is read"""
    updates: int | None = None
    """number of batches, in place of whole epochs"""
    batch_tokens: int = 2048
    """tokens of a batch, padding included [tokens]"""
    learning_rate: float = 1e-3
    """AdamW's highest learning rate"""
    warm_up: float = 0.03
    """share of the updates over which the learning rate rises; then it falls along a cosine to a hundredth"""
    weight_decay: float = 0.01
    """AdamW's weight decay"""
    steps: int = 3
    """steps on a feature draft's own features in every second batch; the others take one step"""
    step_decay: float = 0.8
    """weight of each further step's loss relative to the one before"""
    seed: int = 0
    """seed of the weights and of the order of the batches"""
    checkpoint_minutes: float = 2.0
    """time between checkpoints, which is what a killed run may lose [min]"""
    evaluations: int = 10
    """number of times that held-out agreement is measured during training"""

    def __post_init__(self) -> None:
        counts = "epochs batch_tokens steps evaluations" + " updates" * (self.updates is not None)
        _check("training", self, counts, shares="warm_up step_decay", others="weight_decay checkpoint_minutes")
        if not self.learning_rate > 0:
            raise ParameterError(f"training.learning_rate must be over 0; got {self.learning_rate}.")


@dataclass(frozen=True)
class DistillationConfig:
    """Everything that decides the result. The defaults take some hours on a CPU.

    The settings of a shipped draft stand in its ``training.json`` and in the command of its card.

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
    """whether the teacher's states are stored on the disk, 1.4 KB a token, so that it reads every text once"""
    device_states: bool = True
    """whether states that are not on the disk stay in the device's memory, for a feature draft and where they fit.
    Batches then have few shapes, and on a GPU each is learned from in one launch. Otherwise the teacher reads every
    batch anew: that needs no memory, and suits a device that reads text as fast as stored states"""
    shard_conversations: int = 500
    """conversations of a text shard, the unit that an interrupted run repeats"""
    held_out: int = 20
    """one prompt in so many is held out from training: half of them to fit the calibrator, half to measure on"""
    test_prompts: tuple[str, ...] = BUILTIN_SOURCES
    """further prompts for measuring agreement with greedy answers, named as for the benchmark; never trained on"""

    def __post_init__(self) -> None:
        check_limit("shard_conversations", self.shard_conversations)
        if self.held_out < 2:
            raise ParameterError(f"held_out must be 2 or more; got {self.held_out}.")
        if self.kind not in ("feature", "causal"):
            raise ParameterError(f"kind must be feature or causal; got {self.kind!r}.")

    @property
    def training(self) -> TrainingConfig:
        """Training of this kind of draft."""
        return self.feature_training if self.kind == "feature" else self.causal_training

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """Layers of the target that the draft reads besides the last one."""
        return self.feature.feature_layers if self.kind == "feature" else ()

    @property
    def states_on_device(self) -> bool:
        """Whether the teacher's states are to stay in the device's memory."""
        return self.kind == "feature" and self.device_states and not self.keep_states

    def learning_settings(self) -> dict[str, Any]:
        """Returns all settings that decide what is learned, by the names that checkpoints know."""
        other = "causal" if self.kind == "feature" else "feature"
        unused = (other, f"{other}_training", "test_prompts")
        settings = {name: value for name, value in asdict(self).items() if name not in unused}
        return _stored(settings | {"device_states": self.states_on_device})


def _check(group: str, settings: object, counts: str, shares: str = "", others: str = "") -> None:
    """Refuses counts that are not positive, shares outside 0 and 1, and others below 0; raises as the settings do."""
    for name in counts.split():
        check_limit(f"{group}.{name}", getattr(settings, name))
    for names, most, allowed in ((shares, 1, "within 0 and 1"), (others, math.inf, "0 or more")):
        for name in names.split():
            if not 0 <= getattr(settings, name) <= most:
                raise ParameterError(f"{group}.{name} must be {allowed}; got {getattr(settings, name)}.")


def _stored(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        _STORED_NAMES.get(name, name): _stored(value) if isinstance(value, dict) else value
        for name, value in settings.items()
    }

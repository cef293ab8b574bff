"""How long a text a model reads, and where its attention or its positions change within that length."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from specgym.env.common.errors import LimitError, PairError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length")
WINDOW_LAYERS = frozenset({"sliding_attention", "chunked_attention", "local"})  # the last is GPT-Neo's
# Rotations that stretch the context by their factor. Some configurations name the length before, others the one after.
STRETCHING = frozenset({"linear", "dynamic", "yarn", "llama3"})
# Their `generate` reads the whole text again where the rotation changes.
REREADING_TYPES = frozenset({"phi3", "phimoe", "phi4_multimodal"})


class ChangingRotation(NamedTuple):
    """A rotary embedding whose angles change for all rows of a forward with its last position."""

    length: int
    """longest text with the first angles [tokens]"""
    once: bool
    """whether the angles change once only; otherwise with every further token"""

    def room(self, position: int) -> int:
        """Returns how far behind the row at `position` others may be, if all are to have their own angles [tokens]."""
        if position < self.length:
            return self.length - 1 - position
        return sys.maxsize if self.once else 0

    def check_prompt(self, length: int) -> None:
        """Refuses a prompt whose angles depend on texts that the model has read before. Raises `LimitError`."""
        if not self.once and length >= self.length:
            raise LimitError(
                f"The prompt has {length} tokens; the target's dynamic rotation reads prompts of at most "
                f"{self.length - 1} exactly, since longer ones depend on earlier texts. Shorten the prompt."
            )


def changing_rotation(config: PretrainedConfig) -> ChangingRotation | None:
    """Returns how a model's rotation changes with the length of the text; None if it does not change."""
    text = config.get_text_config(decoder=True)
    for rope in _rotations(text):
        if rope.get("rope_type") == "longrope":
            return ChangingRotation(int(rope.get("original_max_position_embeddings") or _length(text)), once=True)
        if rope.get("rope_type") == "dynamic":
            return ChangingRotation(_length(text), once=False)
    return None


def context_limit(config: PretrainedConfig) -> int:
    """Returns how many positions a model has [tokens].

    A scaled rotation stretches the context. Phi-3 and its kin read a text anew where their longrope rotation changes;
    that is not done here, so such a model counts up to its original length only.

    Args:
        config: the model's configuration.

    Raises:
        PairError: the configuration has no context length.
    """
    text = config.get_text_config(decoder=True)
    length, rotations = _length(text), list(_rotations(text))
    if text.model_type in REREADING_TYPES and any(rope.get("rope_type") == "longrope" for rope in rotations):
        rotation = changing_rotation(text)
        return length if rotation is None else min(length, rotation.length)
    stretched = [
        int(rope["factor"] * (rope.get("original_max_position_embeddings") or length))
        for rope in rotations
        if rope.get("rope_type") in STRETCHING and rope.get("factor")
    ]
    return max(length, min(stretched)) if len(stretched) == len(rotations) > 0 else length


def has_window(config: PretrainedConfig) -> bool:
    """Whether a sliding window or chunks may hide something within the context."""
    text = config.get_text_config(decoder=True)
    layers = getattr(text, "layer_types", None) or getattr(text, "attention_layers", None)  # GPT-Neo's own field
    if layers and not WINDOW_LAYERS.intersection(layers):
        return False
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    local = getattr(text, "window_size", None) if "local" in (layers or ()) else None
    sizes = [size for size in (window, local, getattr(text, "attention_chunk_size", None)) if size]
    return any(size < context_limit(text) for size in sizes)


def _length(text: PretrainedConfig) -> int:
    """The context length that a configuration names. Raises `PairError` if it names none."""
    lengths = [getattr(text, field, None) for field in CONTEXT_FIELDS]
    limit = next((length for length in lengths if isinstance(length, int) and length > 0), None)
    if limit is None:
        raise PairError(
            f"The configuration of model type {text.model_type!r} names no context length. "
            f"Expected: a positive {' or '.join(CONTEXT_FIELDS)} in its config.json."
        )
    return limit


def _rotations(text: PretrainedConfig) -> list[Mapping[str, Any]]:
    """The settings of a model's rotary embeddings: one for all layers, or one for each kind of layer."""
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [part for part in rope.values() if isinstance(part, Mapping)]
    return kinds or ([rope] if rope else [])

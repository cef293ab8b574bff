"""Transformers models as the engine drives them: one text, one cache, rows of a tree appended in one forward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from specgym.env.common.arrays import BoolArray, IntArray
from specgym.env.common.errors import PairError
from specgym.env.models.attention import ATTENTION, additive_mask
from specgym.env.models.cache import TreeCache
from specgym.env.models.fast.lean import lean_model
from specgym.env.models.hub.compatibility import check_target, context_limit
from specgym.env.models.states import HiddenStates


class CachedModel:
    """A causal language model with a cache of its own that rows of a tree can be appended to.

    The model object is switched to tree attention; `restore` undoes that.

    Args:
        model: any transformers causal language model with full attention.
        eight_bits: whether the weights of its linear layers are rounded to eight bits, see `in_eight_bits`.

    Attributes:
        precision: the name of that of its weights.

    Raises:
        PairError: the model's attention cannot branch, or its weights cannot be rounded.
        ParameterError: weights are to be rounded, and this machine cannot.
    """

    def __init__(self, model: PreTrainedModel, *, eight_bits: bool = False) -> None:
        check_target(model.config)
        self.model = model.eval()
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self.context_limit = context_limit(model.config)
        self.cache = TreeCache(int(model.config.num_hidden_layers), self.device)
        self.shown: tuple[int, ...] | None = None  # layers whose states are recorded, if any
        self._lean_features: torch.Tensor | None = None
        self.eight_bits = eight_bits
        self.precision = "int8" if eight_bits else str(model.dtype).removeprefix("torch.")
        self._lean = lean_model(model, eight_bits=eight_bits)
        if eight_bits and self._lean is None:
            raise PairError(
                f"int8 is for models built like Llama (Llama, Mistral, Qwen2, Qwen3), without adapters; this one is a "
                f"{type(model).__name__}. Use bfloat16."
            )
        self._previous_attention = model.config._attn_implementation
        model.set_attn_implementation(ATTENTION)

    @property
    def state_dtype(self) -> torch.dtype:
        """The precision that keys and values are kept in."""
        return self.dtype if self._lean is None else self._lean.dtype

    def restore(self) -> None:
        """Gives the model object its former attention back."""
        self.model.set_attn_implementation(self._previous_attention)

    def extend(self, tokens: Sequence[int]) -> torch.Tensor:
        """Appends consecutive tokens to the cache.

        Returns:
            The logits after the last of them, `[1, vocabulary]`.
        """
        prefix, rows = self.cache.length, len(tokens)
        visible = np.tri(rows, dtype=np.bool_) if rows > 1 and prefix else None
        return self._forward(np.asarray(tokens, np.int64), np.arange(prefix, prefix + rows), visible, 1)

    def extend_all(self, tokens: Sequence[int]) -> torch.Tensor:
        """Reads a whole text into the empty cache; the logits after each token, `[tokens, vocabulary]`."""
        return self._forward(np.asarray(tokens, np.int64), np.arange(len(tokens)), None, 0)

    def extend_tree(self, tokens: IntArray, positions: IntArray, visible: BoolArray, *, keep: int = 0) -> torch.Tensor:
        """Appends rows of a tree to the cache.

        Args:
            tokens: the rows' tokens, `int64[rows]`.
            positions: their absolute positions, `int64[rows]`.
            visible: which of the last columns, these rows' own included, each row sees, `bool[rows, columns]`;
                every column before them is seen.
            keep: last rows whose logits are wanted; 0 for all.

        Returns:
            Logits, `[rows kept, vocabulary]`.
        """
        return self._forward(tokens, positions, visible, keep)

    def _forward(self, tokens: IntArray, positions: IntArray, visible: BoolArray | None, keep: int) -> torch.Tensor:
        if self._lean is not None:
            logits, self._lean_features = self._lean(
                tokens, positions, visible, self.cache, keep=keep, shown=self.shown
            )
            return logits
        mask = None
        if visible is not None:
            prefix = self.cache.length + len(tokens) - visible.shape[1]
            mask = additive_mask(prefix, visible, self.dtype, self.device)
        output = self.model(
            torch.from_numpy(tokens[None]).to(self.device),
            attention_mask=mask,
            position_ids=torch.from_numpy(positions[None]).to(self.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,  # 0 keeps all
        )
        return output.logits[0]  # type: ignore[no-any-return]


class TargetModel(CachedModel):
    """The target, which also shows its hidden states to drafts that feed on them.

    Args:
        model: any transformers causal language model with full attention.
        end_tokens: ids that end a text; those of the model's own generation settings if None.
        eight_bits: as for `CachedModel`, which raises the same.
    """

    def __init__(
        self, model: PreTrainedModel, end_tokens: frozenset[int] | None = None, *, eight_bits: bool = False
    ) -> None:
        super().__init__(model, eight_bits=eight_bits)
        self.end_tokens = end_of_sequence(model) if end_tokens is None else end_tokens
        self._states: HiddenStates | None = None

    @property
    def features(self) -> torch.Tensor | None:
        """Hidden states of the last forward's rows, `[rows, width]`; None unless `show_features` turned them on."""
        if self._lean is not None:
            return self._lean_features
        return None if self._states is None or self._states.last is None else self._states.last[0]

    def restore(self) -> None:
        """Gives the model object its former attention back and records nothing any more."""
        self.show_features(None)
        super().restore()

    def show_features(self, layers: tuple[int, ...] | None) -> None:
        """Turns the recording of hidden states on, for these layers and the last one (see `HiddenStates`), or off.

        Raises:
            PairError: the model has no such layer.
        """
        if layers == self.shown:
            return
        if self._states is not None:
            self._states.close()
        self._states, self.shown, self._lean_features = None, None, None
        if layers is not None:
            self._states, self.shown = HiddenStates(self.model, layers), layers

    @contextlib.contextmanager
    def lent(self) -> Iterator[PreTrainedModel]:
        """The model object as it was before, for somebody else to use meanwhile."""
        shown = self.shown
        self.restore()
        try:
            yield self.model
        finally:
            self.model.set_attn_implementation(ATTENTION)
            self.show_features(shown)


def end_of_sequence(model: PreTrainedModel) -> frozenset[int]:
    """The token ids that end a text by the model's generation settings; empty if there are none."""
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if end is None:
        end = model.config.eos_token_id
    if end is None:
        return frozenset()
    return frozenset(int(token) for token in (end if isinstance(end, list | tuple) else [end]))

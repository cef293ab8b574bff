"""Keys and values that a user hands over, or wants to have: read where they hold a beginning, and extended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache, GenerationConfig, PreTrainedModel, StaticCache

from specgym.env.common.errors import LimitError, ParameterError
from specgym.env.drafts import Draft
from specgym.env.models.target import TargetModel


def check_cache(cache: Any, config: GenerationConfig, input_ids: torch.Tensor, mask: torch.Tensor | None) -> None:
    """Refuses a cache of the user's that cannot be read or extended.

    Args:
        cache: the cache; None for none.
        config: the generation configuration.
        input_ids: prompts, `int64[texts, tokens]`.
        mask: the attention mask; None if it hides nothing.

    Raises:
        ParameterError: a cache of another kind than transformers' own, or one whose tokens are not the prompt's first.
        LimitError: several texts.
    """
    if cache is None or not getattr(cache, "_is_user_defined", False):
        return
    filled = cache.get_seq_length()
    if type(cache) not in (DynamicCache, StaticCache) or (filled and type(cache) is StaticCache):
        raise ParameterError(
            f"Not supported with speculation: past_key_values of type {type(cache).__name__} that hold {filled} tokens."
            " Give a DynamicCache, or use plain generate."
        )
    if len(input_ids) > 1:
        raise LimitError(f"Expected one text with past_key_values; got {len(input_ids)}. Leave past_key_values out.")
    if not filled:
        return
    # `generate` takes the prompt for a continuation of the cached text unless the mask is as long as the prompt.
    is_whole = mask is None and getattr(config, "_mask_length", -1) == input_ids.shape[1]
    held = {layer.keys.shape[:1] + layer.keys.shape[2:3] if layer.is_initialized else () for layer in cache.layers}
    if not is_whole or filled >= input_ids.shape[1] or held != {(1, filled)}:
        raise ParameterError(
            f"Not supported with speculation: past_key_values that hold {filled} tokens, unless these are the first of "
            "the prompt and in full. Give the whole text without padding, or use plain generate."
        )


class CachedTarget(TargetModel):
    """A target whose texts begin with the keys and values of a user's cache, if it holds any.

    Args:
        model: as for `TargetModel`.
        end_tokens: ids that end a text.
        cache: the user's, whose tokens are the first of every prompt; None for none.

    Raises:
        ParameterError: the cache is of another model.
    """

    def __init__(self, model: PreTrainedModel, end_tokens: frozenset[int], cache: Cache | None) -> None:
        self._beginning: list[tuple[torch.Tensor, torch.Tensor]] = []  # a model that nobody knows is tried without
        super().__init__(model, end_tokens)
        layers = cache.layers if cache is not None and cache.get_seq_length() > 0 else ()
        self._beginning = [(layer.keys, layer.values) for layer in layers]
        if self._beginning and len(self._beginning) != len(self.cache.layers):
            raise ParameterError(
                f"Expected past_key_values of {len(self.cache.layers)} layers; got {len(self._beginning)}."
            )

    def check_draft(self, draft: Draft) -> None:
        """Refuses a draft that reads hidden states of all tokens, since a cache has none."""
        if self._beginning and draft.feature_layers is not None:
            raise ParameterError("Expected a draft without hidden states beside past_key_values. Use draft='lookup'.")

    def extend(self, tokens: Sequence[int]) -> torch.Tensor:
        """See `CachedModel.extend`. In an empty cache, the user's rows take the place of the first tokens."""
        if self._beginning and self.cache.length == 0:
            for layer, states in zip(self.cache.layers, self._beginning, strict=True):
                layer.update(*(each.to(self.device, self.state_dtype) for each in states))
            tokens = tokens[self.cache.length :]
        return super().extend(tokens)


def extend_cache(cache: Cache, target: TargetModel, tokens: Sequence[int]) -> None:
    """Adds the keys and values of a text to a cache: of all tokens that it does not hold but the last one."""
    new = slice(cache.get_seq_length(), len(tokens) - 1)
    for number, layer in enumerate(target.cache.layers):
        if layer.is_initialized:  # otherwise the layer reads the keys and values of another one
            cache.update(*(each[:, :, new].to(target.dtype, copy=True) for each in (layer.keys, layer.values)), number)

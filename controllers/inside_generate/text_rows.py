"""The single texts of a batch: their prompts without padding, and logits processors as each text sees them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessorList, generation

from specgym.env.common.errors import LimitError, ParameterError
from specgym.env.tree.processors import TEXT_FREE, Processor


def visible_tokens(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Returns which tokens are not padding, `bool[texts, tokens]`.

    Args:
        input_ids: prompts, `int64[texts, tokens]`.
        attention_mask: 0 at padding and 1 elsewhere, of the same shape; None for no padding.

    Raises:
        ParameterError: a mask of another shape or with other values.
        LimitError: padding that is not on the left, or a prompt of nothing else.
    """
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask.shape != input_ids.shape or not bool(((attention_mask == 0) | (attention_mask == 1)).all()):
        raise ParameterError(
            f"Expected an attention_mask of zeros and ones, of the prompts' shape {[*input_ids.shape]}; got "
            f"{[*attention_mask.shape]} of {attention_mask.dtype}. Use plain generate for other masks."
        )
    visible = attention_mask.to(input_ids.device) != 0
    if not bool(visible[:, -1:].all() & (visible[:, 1:] >= visible[:, :-1]).all()):
        raise LimitError(
            "Expected padding on the left only; the attention mask hides tokens in the middle or at the end of a "
            "prompt. Set tokenizer.padding_side to 'left'."
        )
    return visible


@dataclass(frozen=True)
class Batch:
    """Prompts and the logits processors of all of them."""

    input_ids: torch.Tensor
    """prompts with padding on the left, `int64[texts, tokens]`"""
    visible: torch.Tensor
    """which tokens are not padding, `bool[texts, tokens]`"""
    processors: LogitsProcessorList
    """called once for each token, in this order"""

    def __len__(self) -> int:
        return len(self.input_ids)

    def prompt(self, row: int) -> tuple[int, ...]:
        """Returns a prompt without padding [token ids]."""
        return tuple(self.input_ids[row, self.visible[row]].tolist())

    def processors_of(self, row: int) -> tuple[Processor, ...]:
        """Returns the processors as they treat one text.

        `generate` calls them with padded texts, so they see the padding here too. What they count begins anew.
        """
        padding = self.input_ids[row : row + 1, ~self.visible[row]]  # [1, tokens]
        alone = [_of_row(each, row, len(self)) if len(self) > 1 else each for each in self.processors]
        if padding.shape[1] == 0:
            return tuple(alone)
        return tuple(each if type(each) in TEXT_FREE else functools.partial(_padded, each, padding) for each in alone)


def _padded(processor: Processor, padding: torch.Tensor, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return processor(torch.cat([padding.to(input_ids.device), input_ids], dim=1), scores)


def _of_row(processor: Any, row: int, rows: int) -> Any:
    """A copy of a processor that holds one text's share of what it holds for the batch."""
    alone, kind = copy.deepcopy(processor), type(processor)  # a list in it must not be shared by rows
    if kind is generation.RepetitionPenaltyLogitsProcessor:
        if isinstance(processor.prompt_ignore_length, torch.Tensor):
            alone.prompt_ignore_length = processor.prompt_ignore_length[row : row + 1]
    elif kind is generation.EncoderRepetitionPenaltyLogitsProcessor:
        prompt = row * len(processor.encoder_input_ids) // rows  # several rows a prompt with num_return_sequences
        alone.encoder_input_ids = processor.encoder_input_ids[prompt : prompt + 1]
    elif kind is generation.EncoderNoRepeatNGramLogitsProcessor:
        prompt = row * processor.batch_size // rows
        alone.batch_size, alone.generated_ngrams = 1, processor.generated_ngrams[prompt : prompt + 1]
    elif kind is generation.PrefixConstrainedLogitsProcessor:
        alone._prefix_allowed_tokens_fn = functools.partial(_allowed, processor._prefix_allowed_tokens_fn, row)
    return alone


def _allowed(function: Callable[[int, torch.Tensor], list[int]], row: int, _: int, text: torch.Tensor) -> list[int]:
    """The tokens that a user's function allows next, which expects the text's number in the batch."""
    return function(row, text)

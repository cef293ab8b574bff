"""Logits processors that read the text before a token: transformers' own and a user's.

They are called as plain decoding calls them: once for every token of the text, in order, with this text alone. So even
a processor that counts its calls gives the text of plain decoding. Rows of a tree that are off the accepted path are
never processed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from transformers import LogitsProcessorList, UnbatchedClassifierFreeGuidanceLogitsProcessor, generation

from specgym.env.common.errors import ParameterError

Processor: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""called with the text so far, `int64[1, tokens]`, and scores, `float32[1, vocabulary]`; returns new scores"""

_TEXT_FREE = ("Temperature", "TopK", "TopP", "TopH", "MinP", "Typical", "Epsilon", "Eta")
TEXT_FREE = frozenset(getattr(generation, f"{name}LogitsWarper", None) for name in _TEXT_FREE) | {
    generation.LogitNormalization,
    generation.InfNanRemoveLogitsProcessor,
    generation.SuppressTokensLogitsProcessor,
}
"""types of processors that read no text and treat every row alone, so that many rows can be processed at once"""


def check_processors(processors: Sequence[Processor]) -> None:
    """Refuses processors that no path of a tree can answer.

    Raises:
        ParameterError: a processor that runs the model on a second prompt.
    """
    if any(isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor) for processor in processors):
        raise ParameterError(
            "Not supported with speculation: guidance_scale (UnbatchedClassifierFreeGuidanceLogitsProcessor), which "
            "runs the model on a second prompt. Leave it out, or use plain generate."
        )


def read_no_text(processors: Sequence[Processor]) -> bool:
    """Returns whether all processors are of types in `TEXT_FREE`."""
    return all(type(processor) in TEXT_FREE for processor in processors)


class ProcessedText:
    """A text that grows token by token, and the processors that read it.

    Args:
        processors: called in this order.
        text: the tokens so far.
        device: where the logits are.
    """

    def __init__(self, processors: Sequence[Processor], text: Sequence[int], device: torch.device) -> None:
        self.processors = LogitsProcessorList(processors)
        with torch.inference_mode(mode=False):
            self._input_ids = torch.tensor([text], dtype=torch.long, device=device)

    def process(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns the processed scores of the token after the text.

        Args:
            logits: of that token, `float[1, vocabulary]`. They are copied, as `generate` does.

        Raises:
            ParameterError: the result has another shape.
        """
        # A processor may keep these tensors, so they are ordinary ones.
        with torch.inference_mode(mode=False), torch.no_grad():
            scores: torch.Tensor = self.processors(self._input_ids, logits.to(torch.float32, copy=True))
        if scores.shape != logits.shape:
            raise ParameterError(f"Expected logits processors to return {[*logits.shape]}; got {[*scores.shape]}.")
        return scores

    def append(self, token: int) -> None:
        """Adds the next token."""
        with torch.inference_mode(mode=False):
            fresh = torch.tensor([[token]], device=self._input_ids.device)
            self._input_ids = torch.cat([self._input_ids, fresh], dim=1)

"""Outputs of `generate` beside tokens: logits and scores of each step."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, GenerationConfig
from transformers.generation import GenerateDecoderOnlyOutput

from specgym.env.common.errors import LimitError
from specgym.env.tree.processors import Processor


class StepRecord:
    """Logits and scores of every token of one text, if the configuration wants them.

    Args:
        config: the generation configuration.
        texts: number of texts.

    Raises:
        LimitError: several texts, since `generate` goes on with those that have ended.
    """

    def __init__(self, config: GenerationConfig, texts: int) -> None:
        self.dictionary = bool(config.return_dict_in_generate)
        wanted = [self.dictionary and bool(each) for each in (config.output_logits, config.output_scores)]
        self.logits: list[torch.Tensor] | None = [] if wanted[0] else None
        self.scores: list[torch.Tensor] | None = [] if wanted[1] else None
        if texts > 1 and any(wanted):
            raise LimitError(f"Expected one text with output_scores or output_logits; got {texts}.")

    def around(self, processors: tuple[Processor, ...]) -> tuple[Processor, ...]:
        """Adds functions to logits processors that record what comes in and what goes out."""
        before = () if self.logits is None else (_recorder(self.logits),)
        after = () if self.scores is None else (_recorder(self.scores),)
        return (*before, *processors, *after)

    def output(
        self, sequences: torch.Tensor, steps: int, cache: Cache | None
    ) -> torch.Tensor | GenerateDecoderOnlyOutput:
        """Returns all that was wanted, with the records of the first `steps` tokens."""
        if not self.dictionary:
            return sequences
        records: dict[str, Any] = {"logits": self.logits, "scores": self.scores}
        cut = {name: None if record is None else tuple(record[:steps]) for name, record in records.items()}
        return GenerateDecoderOnlyOutput(sequences=sequences, past_key_values=cache, **cut)


def _recorder(record: list[torch.Tensor]) -> Processor:
    def keep(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        record.append(scores)
        return scores

    return keep

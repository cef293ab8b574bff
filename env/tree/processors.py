"""Logits processors that read the text before a token: transformers' own and a user's.

They are called as plain decoding calls them: once for every token of the text, in order, with this text alone. So even
a processor that counts its calls gives the text of plain decoding. Rows of a tree that are off the accepted path are
never processed.

A draft's candidates are many, and only proposals. Two kinds of processors pay there and run on many rows at once: a
repetition penalty, and those that read no text. The others are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
    generation,
)

from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import ParameterError
from specgym.env.tree.tree import TokenTree

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
        vocabulary: number of tokens of the target.
        device: where the logits are.
    """

    def __init__(
        self, processors: Sequence[Processor], text: Sequence[int], vocabulary: int, device: torch.device
    ) -> None:
        self.processors, self.vocabulary = LogitsProcessorList(processors), vocabulary
        self._target_best = torch.zeros((), device=device)  # the highest logit of the last row
        self._entries: torch.Tensor | None = None
        with torch.inference_mode(mode=False):
            self._input_ids = torch.tensor([text], dtype=torch.long, device=device)

    @property
    def names(self) -> str:
        """The processors' names, for messages."""
        return ", ".join(getattr(each, "__name__", type(each).__name__) for each in self.processors)

    def process(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns the processed scores of the token after the text.

        Args:
            logits: of that token, `float[1, vocabulary]`. They are copied, as `generate` does.

        Raises:
            ParameterError: the result has another shape.
        """
        # A processor may keep these tensors, so they are ordinary ones.
        with torch.inference_mode(mode=False), torch.no_grad():
            raw = logits.to(torch.float32, copy=True)
            self._target_best = raw.amax()
            scores: torch.Tensor = self.processors(self._input_ids, raw)
        if scores.shape != logits.shape:
            raise ParameterError(f"Expected logits processors to return {[*logits.shape]}; got {[*scores.shape]}.")
        return scores

    def process_drafted(
        self, logits: torch.Tensor, tree: TokenTree, nodes: IntArray, token_ids: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns a draft's scores after nodes of one depth, of a tree whose root is the text's last token.

        Args:
            logits: `float[nodes, draft vocabulary]`.
            tree: the tree so far.
            nodes: its nodes that the draft expands.
            token_ids: the target's token id of each entry of a trimmed vocabulary; the same in every call.
        """
        paths = torch.from_numpy(tree.paths(nodes)).to(logits.device)  # [nodes, depth]
        texts = torch.cat([self._input_ids.expand(len(nodes), -1), paths], dim=1)
        if token_ids is not None:
            texts = self._entries_of(token_ids)[texts.clamp(max=self.vocabulary)]
        scores = logits.float()
        for processor in self.processors:
            if type(processor) is RepetitionPenaltyLogitsProcessor:
                scores = _penalised(scores, texts, processor, self._target_best)
            elif type(processor) in TEXT_FREE:
                scores = processor(texts, scores)
        return scores

    def _entries_of(self, token_ids: torch.Tensor) -> torch.Tensor:
        """The entry of each token in a trimmed vocabulary, or that vocabulary's size, `int64[vocabulary + 1]`."""
        if self._entries is None:
            size = len(token_ids)
            self._entries = torch.full((self.vocabulary + 1,), size, device=token_ids.device)
            self._entries[token_ids] = torch.arange(size, device=token_ids.device)
        return self._entries

    def append(self, token: int) -> None:
        """Adds the next token."""
        with torch.inference_mode(mode=False):
            fresh = torch.tensor([[token]], device=self._input_ids.device)
            self._input_ids = torch.cat([self._input_ids, fresh], dim=1)


def _penalised(
    scores: torch.Tensor, texts: torch.Tensor, processor: RepetitionPenaltyLogitsProcessor, target_best: torch.Tensor
) -> torch.Tensor:
    """Applies a repetition penalty to a draft's scores, `[rows, vocabulary]`, for the tokens of `texts` in there.

    The penalty depends on the height of the logits, which a draft need not share with the target. So the draft's best
    logit is taken to be as high as the target's was last.
    """
    ignored = processor.prompt_ignore_length
    texts = texts[:, 0 if ignored is None else int(ignored) :].clamp(max=scores.shape[1])
    lift = target_best - scores.amax(dim=1, keepdim=True)
    padded = torch.nn.functional.pad(scores, (0, 1))  # tokens past the vocabulary share the last place
    seen = padded.gather(1, texts) + lift
    seen = torch.where(seen < 0, seen * processor.penalty, seen / processor.penalty) - lift
    return padded.scatter_(1, texts, seen)[:, :-1]

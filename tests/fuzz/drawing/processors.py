"""Logits processors and stopping criteria of a user's own: subclasses, with state, in place, and plain functions."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria, TemperatureLogitsWarper, TopKLogitsWarper


class ForbidNeighbours(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed
    """Forbids tokens that follow from the last two tokens."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        for token in input_ids[:, -2:].T:
            scores = scores.scatter(1, (token[:, None] * 7 + 3) % scores.shape[1], -torch.inf)
        return scores


class CountCalls(LogitsProcessor):  # type: ignore[misc]
    """Counts its calls, and turns the favour it does to tokens by the count."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.calls += 1
        return scores + torch.arange(scores.shape[1]).roll(self.calls) % 5


class Momentum(LogitsProcessor):  # type: ignore[misc]
    """Keeps the scores of all calls in a list, and adds a part of the last ones."""

    def __init__(self) -> None:
        self.history: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.history:
            scores = scores + 0.3 * self.history[-1].clamp(-20, 20)
        self.history.append(scores)
        return scores


class InPlace(LogitsProcessor):  # type: ignore[misc]
    """Changes the scores that it is given, by the length of the text."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores[:, input_ids.shape[1] % scores.shape[1] :: 3] -= 2
        return scores


class OwnTemperature(TemperatureLogitsWarper):  # type: ignore[misc]
    """A subclass of a known warper that does something else."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = super().__call__(input_ids, scores)
        return scores.masked_fill(torch.arange(scores.shape[1]) % 3 == input_ids[:, -1:] % 3, -torch.inf)


class OwnTopK(TopKLogitsWarper):  # type: ignore[misc]
    """A known warper whose number changes with the text."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.top_k = 2 + input_ids.shape[1] % 4
        return super().__call__(input_ids, scores)


def favour_first_tokens(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Favours the tokens of the beginning of the text."""
    return scores.scatter_add(1, input_ids[:, :4], torch.full((len(scores), min(4, input_ids.shape[1])), 1.5))


class StopAtLength(StoppingCriteria):  # type: ignore[misc]
    """Stops each text at its own length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        lengths = [self.length + int(row[-1]) % 3 for row in input_ids]
        return torch.tensor([input_ids.shape[1] >= length for length in lengths])


class StopAtSum(StoppingCriteria):  # type: ignore[misc]
    """Stops where the last two tokens have a certain sum; a later call does not say so again."""

    def __init__(self, divisor: int) -> None:
        self.divisor = divisor

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return input_ids[:, -2:].sum(dim=1) % self.divisor == 0


class StopAfterCalls(StoppingCriteria):  # type: ignore[misc]
    """Counts its calls, and stops all texts at once."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.calls -= 1
        return torch.full((input_ids.shape[0],), self.calls <= 0)

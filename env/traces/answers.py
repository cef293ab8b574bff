"""Many answers at once: the target's own texts, as plain decoding writes them, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import DynamicCache

from env.models.slots import SlotCache
from env.models.target import TargetModel
from env.rounds import Request, check_fits
from env.sampling import TokenChooser

__all__ = ["Answer", "write_answers"]


@dataclass(frozen=True)
class Answer:
    """A request and the text that the target goes on with."""

    number: int
    """which of the requests it answers"""
    tokens: tuple[int, ...]
    """prompt and answer [token ids]"""


@dataclass
class _Stream:
    """An answer under way."""

    number: int
    request: Request
    chooser: TokenChooser
    tokens: list[int]
    limit: int


class _Writer:
    def __init__(self, target: TargetModel, slots: int, longest: int) -> None:
        self.target = target
        self.cache = SlotCache(target.model, slots, longest)
        self.streams: list[_Stream] = []

    def begin(self, number: int, request: Request) -> None:
        """Reads all of a prompt but its last token, which goes with the next step."""
        read = torch.tensor([request.prompt[:-1]], device=self.target.device)
        states = DynamicCache()
        if read.shape[1]:
            self.target.model.get_decoder()(read, past_key_values=states, use_cache=True)
        self.cache.add(states, [read.shape[1]])
        chooser = TokenChooser(request.sampling, self.target.vocabulary, self.target.device)
        limit = min(len(request.prompt) + request.max_new_tokens, self.target.context_limit)
        self.streams.append(_Stream(number, request, chooser, list(request.prompt), limit))

    def step(self) -> Iterator[Answer]:
        """Adds a token to every stream; yields and removes those that end with it."""
        tokens = torch.tensor([[stream.tokens[-1]] for stream in self.streams], device=self.target.device)
        logits = self.target.model(
            tokens,
            attention_mask=self.cache.mask(self.target.dtype),
            position_ids=self.cache.lengths[:, None],
            past_key_values=self.cache,
        ).logits[:, 0]
        self.cache.advance()
        ended = []
        for row, stream in enumerate(self.streams):
            stream.tokens += stream.chooser.choose(logits[row : row + 1], [len(stream.tokens)]).tolist()
            over = not stream.request.ignore_end and stream.tokens[-1] in self.target.end_tokens
            if over or len(stream.tokens) == stream.limit:
                yield Answer(stream.number, tuple(stream.tokens))
                ended.append(row)
        self.streams = [self.streams[row] for row in self.cache.remove(ended)]


@torch.inference_mode()
def write_answers(
    target: TargetModel,
    requests: Sequence[Request],
    slots: int = 32,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Iterator[Answer]:
    """Answers requests, many at a time; each is what plain decoding of it alone gives, up to rounding.

    Args:
        target: who answers.
        requests: what to answer.
        slots: most answers under way at a time.
        progress: told how many tokens were written since it was last told.

    Yields:
        The answers, as they are finished.

    Raises:
        LimitError: a prompt leaves no room in the target's context; before any work.
        NumericalError: the target returned NaN or infinite logits.
    """
    for request in requests:
        check_fits(len(request.prompt), target.context_limit)
    if not requests:
        return
    # Texts of like length together: attention is as wide as the longest.
    waiting = sorted(range(len(requests)), key=lambda number: len(requests[number].prompt))
    longest = max(len(request.prompt) + request.max_new_tokens for request in requests)
    target.show_features(None)
    writer = _Writer(target, slots, min(longest, target.context_limit))
    while waiting or writer.streams:
        while waiting and len(writer.streams) < slots:
            number = waiting.pop()
            writer.begin(number, requests[number])
        progress(len(writer.streams))
        yield from writer.step()

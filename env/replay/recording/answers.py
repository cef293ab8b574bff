"""Many answers at once: the target's own texts, as plain decoding writes them, as rows of one cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from specgym.env.common.arrays import BoolArray
from specgym.env.models.target import TargetModel
from specgym.env.tree.rounds import Request, check_fits
from specgym.env.tree.sampling import TokenChooser


@dataclass(frozen=True)
class Answer:
    """A request and the text that the target goes on with."""

    number: int
    """which of the requests it answers"""
    tokens: tuple[int, ...]
    """prompt and answer [token ids]"""
    features: torch.Tensor | None
    """hidden states of all tokens but the last, `[tokens - 1, width]`; None if the target shows none"""


class _Stream:
    """An answer under way."""

    def __init__(self, number: int, request: Request, target: TargetModel) -> None:
        self.number, self.request, self.tokens = number, request, list(request.prompt)
        self.chooser = TokenChooser(request.sampling, target.vocabulary, target.device)
        self.limit = min(len(request.prompt) + request.max_new_tokens, target.context_limit)
        self.columns: list[int] = []  # of the cache, where its tokens are
        self.features: list[torch.Tensor] = []


class _Writer:
    """Writes texts that share a cache: every row sees its own text alone, and texts may begin with the same columns."""

    def __init__(self, target: TargetModel) -> None:
        self.target = target
        target.cache.reset()
        self.streams: list[_Stream] = []

    def begin(self, streams: Sequence[_Stream]) -> None:
        """Reads the prompt that all of these have, but for its last token, which goes with the next step."""
        start, prompt = self.target.cache.length, streams[0].request.prompt[:-1]
        rows = len(prompt)
        if rows:
            visible = np.zeros((rows, start + rows), np.bool_)
            visible[:, start:] = np.tri(rows, dtype=np.bool_)
            self.target.extend_tree(np.array(prompt), np.arange(rows), visible, keep=1)
        for stream in streams:
            stream.columns += range(start, start + rows)
            if rows and self.target.features is not None:
                stream.features.append(self.target.features)
        self.streams += streams

    def step(self) -> Iterator[Answer]:
        """Adds a token to every stream; yields and removes those that end with it."""
        start = self.target.cache.length
        for row, stream in enumerate(self.streams):
            stream.columns.append(start + row)
        tokens, positions = (
            np.array(numbers)
            for numbers in zip(*((stream.tokens[-1], len(stream.tokens) - 1) for stream in self.streams), strict=True)
        )
        logits = self.target.extend_tree(tokens, positions, self._visible(start + len(self.streams)))
        features, going = self.target.features, []
        for row, stream in enumerate(self.streams):
            if features is not None:
                stream.features.append(features[row : row + 1])
            stream.tokens += stream.chooser.choose(logits[row : row + 1], [len(stream.tokens)]).tolist()
            over = not stream.request.ignore_end and stream.tokens[-1] in self.target.end_tokens
            if over or len(stream.tokens) == stream.limit:
                states = torch.cat(stream.features) if stream.features else None
                yield Answer(stream.number, tuple(stream.tokens), states)
            else:
                going.append(stream)
        self.streams = going

    def _visible(self, columns: int) -> BoolArray:
        visible = np.zeros((len(self.streams), columns), np.bool_)
        for row, stream in enumerate(self.streams):
            visible[row, stream.columns] = True
        return visible


@torch.inference_mode()
def write_answers(
    target: TargetModel,
    requests: Sequence[Request],
    slots: int = 32,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Iterator[Answer]:
    """Answers requests, many at a time; each is what plain decoding of it alone gives, up to rounding.

    The bits are the same where rows of a forward do not depend on their company, see `row_invariant`.

    Args:
        target: who answers; its request under way is lost.
        requests: what to answer. A prompt that several of those `slots` have is read once.
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
    for first in range(0, len(requests), slots):
        writer, prompts = _Writer(target), dict[tuple[int, ...], list[_Stream]]()
        for number in range(first, min(first + slots, len(requests))):
            prompts.setdefault(requests[number].prompt, []).append(_Stream(number, requests[number], target))
        for streams in prompts.values():
            writer.begin(streams)
        while writer.streams:
            progress(len(writer.streams))
            yield from writer.step()

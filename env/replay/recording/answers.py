"""Writes many answers at once, each the target's own text by plain decoding, as rows of one cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from specgym.env.common.errors import ParameterError
from specgym.env.models.target import TargetModel
from specgym.env.tree.rounds import Request, check_fits, check_known
from specgym.env.tree.sampling import TokenChooser


@dataclass(frozen=True)
class Answer:
    """A request and the text that the target answers with."""

    number: int
    """number of the request"""
    tokens: tuple[int, ...]
    """prompt and answer [token ids]"""
    features: torch.Tensor | None
    """hidden states of all tokens but the last, `[tokens - 1, width]`; None if the target returns none"""


class _Stream:
    """An answer under way."""

    def __init__(self, number: int, request: Request, target: TargetModel) -> None:
        if request.processors is not None:
            raise ParameterError("Expected a request without logits processors: traces cannot hold them.")
        self.number, self.request, self.tokens = number, request, list(request.prompt)
        self.chooser = TokenChooser(request.sampling, target.vocabulary, target.device)
        self.limit = min(len(request.prompt) + request.max_new_tokens, target.context_limit)
        self.columns: list[int] = []  # of the cache, one for each token
        self.features: list[torch.Tensor] = []


class _Writer:
    """Writes texts that share a cache. Every row sees only its own text; texts may share the columns of a prompt."""

    def __init__(self, target: TargetModel) -> None:
        self.target = target
        target.start()
        self.streams: list[_Stream] = []

    def begin(self, streams: Sequence[_Stream]) -> None:
        """Reads the prompt that these streams share, without its last token, which is read with the next step."""
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
        visible = np.zeros((len(self.streams), start + len(self.streams)), np.bool_)
        for row, stream in enumerate(self.streams):
            stream.columns.append(start + row)
            visible[row, stream.columns] = True
        tokens = np.array([stream.tokens[-1] for stream in self.streams])
        positions = np.array([len(stream.tokens) - 1 for stream in self.streams])
        logits = self.target.extend_tree(tokens, positions, visible)
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


@torch.inference_mode()
def write_answers(
    target: TargetModel,
    requests: Sequence[Request],
    slots: int = 32,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Iterator[Answer]:
    """Answers requests, many at a time; each answer is that of plain decoding alone, up to rounding.

    The bits are the same where rows of a forward do not depend on other rows, see `row_invariant`.

    Args:
        target: the model that answers; its current request is lost.
        requests: what to answer. A prompt that several of `slots` requests share is read once.
        slots: most answers written at a time.
        progress: called with the number of further tokens written.

    Yields:
        The answers, as they are finished.

    Raises:
        LimitError: a prompt leaves no room in the target's context, or holds a token that it lacks; before any work.
        NumericalError: the target returned NaN or infinite logits.
    """
    for request in requests:
        check_fits(len(request.prompt), target.context_limit)
        check_known(request.prompt, target.vocabulary)
    for first in range(0, len(requests), slots):
        writer, prompts = _Writer(target), dict[tuple[int, ...], list[_Stream]]()
        for number in range(first, min(first + slots, len(requests))):
            prompts.setdefault(requests[number].prompt, []).append(_Stream(number, requests[number], target))
        for streams in prompts.values():
            writer.begin(streams)
        while writer.streams:
            progress(len(writer.streams))
            yield from writer.step()

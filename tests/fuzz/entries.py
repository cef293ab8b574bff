"""Ways into the engine: inside transformers, by a decoder, by two decoders in turn, by two threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

import specgym
from specgym.controllers.run import SteeredRound, steer
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts import Draft
from specgym.env.models.target import TargetModel
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings
from tests.fuzz.drawing.controllers import CountingController


@dataclass(eq=False)
class Call:
    """One call of the engine."""

    inputs: dict[str, Any]
    """arguments of `generate`"""
    seeds: list[int] | None
    """seed of the noise of each text; None for greedy decoding"""
    controller: CountingController
    """chooses the trees"""
    output: Any = None
    """what came back"""
    error: Exception | None = None
    """why the call was refused, or another error"""

    def settle(self, decode: Callable[[Call], Any]) -> None:
        """Keeps the result of `decode`, or its error, which may be raised in a thread."""
        try:
            self.output = decode(self)
        except Exception as error:
            self.error = error


class Entry(Protocol):
    """A way into the engine."""

    at_once: int
    """calls that are played together"""

    def play(self, calls: list[Call]) -> None:
        """Plays calls and keeps their results in them."""


class Generate:
    """`generate` with `custom_generate=`.

    Args:
        model: the target.
        draft: the draft.
        threads: whether calls run in threads of their own.
    """

    def __init__(self, model: PreTrainedModel, draft: Any, *, threads: bool = False) -> None:
        self.model, self.draft = model, draft
        self.threads, self.at_once = threads, 2 if threads else 1

    def play(self, calls: list[Call]) -> None:
        """See `Entry.play`."""
        if not self.threads:
            for call in calls:
                call.settle(self._generate)
            return
        running = [threading.Thread(target=call.settle, args=(self._generate,)) for call in calls]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()

    def _generate(self, call: Call) -> Any:
        sampling = {"do_sample": False} if call.seeds is None else {"do_sample": True, "seed": call.seeds[0]}
        ours = {"custom_generate": specgym.generate, "draft": self.draft, "controller": call.controller}
        return self.model.generate(**call.inputs, **sampling, **ours)


class Decoders:
    """Decoders of one pair, each of which continues a text.

    Args:
        model: the target.
        draft: the draft.
        random: for the order of rounds, and for how settings are passed.
        count: number of decoders, whose rounds take turns.
        shared: whether they share the caches of one pair; then one of them must stop with an error.
    """

    def __init__(
        self, model: PreTrainedModel, draft: Draft, random: Random, count: int = 1, *, shared: bool = False
    ) -> None:
        self.random, self.at_once = random, count
        self.target = TargetModel(model, frozenset())
        pairs = [(self.target, draft), *((self.target.fork(), draft.fork()) for _ in range(count - 1))]
        self.decoders = [LiveDecoder(*pairs[0 if shared else number]) for number in range(count)]

    def play(self, calls: list[Call]) -> None:
        """See `Entry.play`."""
        texts: list[tuple[Call, LiveDecoder, Iterator[SteeredRound]]] = []
        for call, decoder in zip(calls, self.decoders, strict=False):
            texts.append((call, decoder, self._rounds(call, decoder)))
        while texts:
            call, decoder, rounds = text = self.random.choice(texts)
            try:
                if next(rounds, None) is None:
                    call.output = torch.tensor([decoder.tokens])
                    texts.remove(text)
            except Exception as error:
                call.error = error
                texts.remove(text)

    def _rounds(self, call: Call, decoder: LiveDecoder) -> Iterator[SteeredRound]:
        """Yields the rounds of a text."""
        given = prepared(self.target.model, call)
        decoder.end_tokens = frozenset(torch.as_tensor(call.inputs.get("eos_token_id", [])).flatten().tolist())
        seed = None if call.seeds is None else call.seeds[0]
        sampling = SamplingSettings() if seed is None else SamplingSettings(1.0, seed=seed)
        prompt = tuple(call.inputs["input_ids"][0].tolist())
        yield from steer(
            decoder, call.controller, Request(prompt, call.inputs["max_new_tokens"], sampling, processors=given)
        )


def prepared(model: PreTrainedModel, call: Call) -> tuple[Any, ...]:
    """Returns the logits processors that `generate` makes of its arguments."""
    found: list[Any] = []

    def keep(model: Any, input_ids: torch.Tensor, logits_processor: Any, **others: Any) -> torch.Tensor:
        found.extend(logits_processor)
        return input_ids

    model.generate(**call.inputs, do_sample=call.seeds is not None, custom_generate=keep)
    return tuple(found)

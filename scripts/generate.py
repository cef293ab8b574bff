"""Answers one prompt and streams the text with its tokens/s."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Group
from rich.live import Live
from rich.text import Text

from specgym.controllers.registry import DEFAULT, make_controller
from specgym.env.common.errors import check_limit
from specgym.scripts.common import ReliableConsole, check_output, main, say
from specgym.scripts.options import Pair, PairOptions, Sampling, SamplingOptions

if TYPE_CHECKING:
    from specgym.controllers.run import Generation
    from specgym.env.decoding.pair import ModelPair
    from specgym.env.tree.rounds import Request


@dataclass(frozen=True)
class GenerateOptions:
    """Answers one prompt and streams the text."""

    prompt: Annotated[str, tyro.conf.Positional]
    """prompt to answer"""
    pair: Pair = field(default_factory=PairOptions)
    sampling: Sampling = field(default_factory=SamplingOptions)
    controller: str = DEFAULT
    """controller, with options as in fixed_tree:branch=3:depth=2"""
    max_new_tokens: int = 256
    """maximum length of the answer [tokens]"""
    raw: bool = False
    """continue the prompt without the chat template"""
    compare: bool = False
    """also decode plainly and print the speed-up; both run once more, after a warm-up"""


class _Screen:
    """Prints whole words as they come; on a terminal with the speed below them."""

    def __init__(self) -> None:
        self._out = ReliableConsole()
        self._text = Text()
        self.live = Live(console=self._out, auto_refresh=False, vertical_overflow="visible")

    def write(self, text: str, stream_end: bool = False) -> None:
        """Takes text that will not change any more, as transformers' streamers give it."""
        if self._out.is_terminal:
            self._text.append(text)
            return
        try:
            print(text, end="\n" if stream_end else "", flush=True)
        except OSError as error:
            check_output(error)
            sys.exit(0)  # nobody reads the rest, so it need not be written

    def speed(self, generation: Generation) -> None:
        """Refreshes the line below the text."""
        if self._out.is_terminal:
            self.live.update(Group(self._text, Text(_summary(generation), style="dim")), refresh=True)


def generate(options: GenerateOptions) -> int:
    """Streams an answer; returns the exit status."""
    from specgym.env.decoding.pair import check_text, encode_chat

    check_text(options.prompt)
    check_limit("max_new_tokens", options.max_new_tokens)
    make_controller(options.controller)
    sampling = options.sampling.settings()
    pair = options.pair.load(chat=not options.raw)
    tokenizer = pair.tokenizer
    prompt = tuple(tokenizer.encode(options.prompt)) if options.raw else encode_chat(tokenizer, [options.prompt])
    request = pair.request(prompt, options.max_new_tokens, sampling)
    say(_summary(_stream(pair, options.controller, request)))
    if options.compare:
        _compare(pair, options.controller, request)
    return 0


def _stream(pair: ModelPair, controller: str, request: Request) -> Generation:
    """Decodes a text and prints it meanwhile."""
    import torch
    from transformers import TextStreamer

    from specgym.controllers.run import Generation, steer
    from specgym.env.tree.rounds import Stopwatch

    screen, generation, decoder = _Screen(), Generation(), pair.decoder()
    streamer = TextStreamer(pair.tokenizer, skip_special_tokens=True)
    streamer.on_finalized_text = screen.write
    with screen.live:
        watch = Stopwatch()
        for step in steer(decoder, make_controller(controller), request):
            generation.add(step)
            generation.seconds += watch.lap()
            streamer.put(torch.tensor(step.outcome.tokens))
            screen.speed(generation)
        streamer.end()
        screen.speed(generation)
    return generation


def _summary(generation: Generation) -> str:
    tokens = len(generation.tokens)
    return (
        f"{tokens} tokens, {tokens / generation.seconds:.1f} tokens/s, "
        f"{tokens / generation.rounds:.2f} tokens a target forward, "
        f"{generation.accepted} of {generation.drafted} draft tokens accepted"
    )


def _compare(pair: ModelPair, controller: str, request: Request) -> None:
    """Prints the speed-up over plain decoding, now that everything is warm."""
    from specgym.controllers.run import run

    decoder = pair.decoder()
    plain = run(decoder, make_controller("autoregressive"), request)
    steered = run(decoder, make_controller(controller), request)
    ratio = len(steered.tokens) / steered.seconds / (len(plain.tokens) / plain.seconds)
    same = "the same text" if plain.tokens == steered.tokens else "another text (see docs/exactness.md)"
    say(f"{ratio:.2f} times plain decoding's {len(plain.tokens) / plain.seconds:.1f} tokens/s, {same}")


if __name__ == "__main__":
    main(generate)

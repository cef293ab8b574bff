"""Answers one prompt, streaming the text with live tokens/s."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
import tyro
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from transformers import PreTrainedTokenizerBase, TextStreamer

from specgym.controllers.registry import DEFAULT, make_controller
from specgym.controllers.run import Generation, run, steer
from specgym.env.decoding.pair import ModelPair, check_text, encode_chat
from specgym.env.tree.rounds import Request, Stopwatch, check_limit
from specgym.scripts.common import PairOptions, SamplingOptions, console, main


@dataclass(frozen=True)
class GenerateOptions:
    """Answers one prompt and streams the text."""

    prompt: Annotated[str, tyro.conf.Positional]
    """what to answer"""
    pair: Annotated[PairOptions, tyro.conf.arg(name="")] = field(default_factory=PairOptions)
    sampling: Annotated[SamplingOptions, tyro.conf.arg(name="")] = field(default_factory=SamplingOptions)
    controller: str = DEFAULT
    """controller, with options as in fixed_tree:branch=3:depth=2"""
    max_new_tokens: int = 256
    """most tokens of the answer"""
    raw: bool = False
    """continue the prompt as it is, without the chat template"""
    compare: bool = False
    """decode plainly too and show the speed-up; runs both once more, after a warm-up"""


class _Screen(TextStreamer):  # type: ignore[misc]  # transformers is not typed
    """Shows whole words as they come; on a terminal with the speed below them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.out = Console()
        self.text = Text()
        self.live = Live(console=self.out, auto_refresh=False, vertical_overflow="visible")

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Takes text that will not change any more."""
        if self.out.is_terminal:
            self.text.append(text)
        else:
            print(text, end="\n" if stream_end else "", flush=True)

    def speed(self, generation: Generation) -> None:
        """Refreshes the line below the text."""
        if self.out.is_terminal:
            self.live.update(Group(self.text, Text(_account(generation), style="dim")), refresh=True)


def generate(options: GenerateOptions) -> int:
    """Streams an answer; returns the exit status."""
    check_text(options.prompt)
    check_limit("max_new_tokens", options.max_new_tokens)
    controller = make_controller(options.controller)
    sampling = options.sampling.settings()
    with console.status("Loading the models"):
        pair = options.pair.load()
    prompt = _encode(pair, options)
    request = Request(prompt, options.max_new_tokens, sampling)
    decoder = pair.decoder()
    screen, generation, watch = _Screen(pair.tokenizer), Generation(), Stopwatch()
    with screen.live:
        for step in steer(decoder, controller, request):
            generation.add(step)
            generation.seconds += watch.lap()
            screen.put(torch.tensor(step.outcome.tokens))
            screen.speed(generation)
        screen.end()
        screen.speed(generation)
    console.print(_account(generation), highlight=False, soft_wrap=True)
    if options.compare:
        _compare(pair, options, request)
    return 0


def _encode(pair: ModelPair, options: GenerateOptions) -> tuple[int, ...]:
    if options.raw:
        return tuple(pair.tokenizer.encode(options.prompt))
    return encode_chat(pair.tokenizer, [options.prompt])


def _account(generation: Generation) -> str:
    tokens = len(generation.tokens)
    return (
        f"{tokens} tokens, {tokens / generation.seconds:.1f} tokens/s, "
        f"{tokens / generation.rounds:.2f} tokens a target forward, "
        f"{generation.accepted} of {generation.drafted} draft tokens accepted"
    )


def _compare(pair: ModelPair, options: GenerateOptions, request: Request) -> None:
    """Both ways once more, now that everything is warm."""
    decoder = pair.decoder()
    plain = run(decoder, make_controller("autoregressive"), request)
    steered = run(decoder, make_controller(options.controller), request)
    ratio = len(steered.tokens) / steered.seconds / (len(plain.tokens) / plain.seconds)
    same = "the same text" if plain.tokens == steered.tokens else "another text (see docs/exactness.md)"
    console.print(
        f"{ratio:.2f} times plain decoding's {len(plain.tokens) / plain.seconds:.1f} tokens/s, {same}", highlight=False
    )


if __name__ == "__main__":
    main(GenerateOptions, generate)

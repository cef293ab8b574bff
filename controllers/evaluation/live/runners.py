"""Ways to continue a text, all called alike: a controller on a decoder, or transformers itself."""

from __future__ import annotations

import time
from typing import Protocol

import torch
from transformers import PreTrainedModel

from specgym.controllers.registry import controller_names, make_controller
from specgym.controllers.run import Generation, run
from specgym.env.common.errors import NumericalError, ParameterError, SpecGymError, UnknownNameError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.models.target import TargetModel
from specgym.env.tree.rounds import FinishReason, Request, check_fits
from specgym.env.tree.sampling import SamplingSettings

TRANSFORMERS = "transformers"
"""name of the reference: transformers' own `generate`, without a draft"""


class RunnerError(SpecGymError):
    """A runner that failed on a text; the message is the reason."""


class Runner(Protocol):
    """Continues texts, one at a time."""

    name: str

    def __call__(self, request: Request) -> Generation:
        """Runs a request to its end."""


class ControllerRunner:
    """A controller at work on a decoder.

    Args:
        name: the controller's name, with options, see `make_controller`.
        decoder: what it steers.
        title: what it is called in results; its name by default.
    """

    def __init__(self, name: str, decoder: LiveDecoder, title: str | None = None) -> None:
        self.name, self.decoder = title or name, decoder
        self.controller = make_controller(name)

    def __call__(self, request: Request) -> Generation:
        """Runs a request to its end."""
        return run(self.decoder, self.controller, request)


class TransformersRunner:
    """Plain decoding by transformers' `generate`, with the attention that transformers chooses by itself.

    Its sampling draws other noise, so beyond temperature 0 its texts are its own and only its speed compares.

    Args:
        target: the model, borrowed for the time of a run.
    """

    name = TRANSFORMERS

    def __init__(self, target: TargetModel) -> None:
        self.target = target

    def __call__(self, request: Request) -> Generation:
        """Runs a request to its end.

        Raises:
            LimitError: the prompt leaves no room in the target's context.
            NumericalError: the target returned NaN or infinite logits, which `generate` takes for some token.
        """
        length, context = len(request.prompt), self.target.context_limit
        check_fits(length, context)
        prompt = torch.tensor([request.prompt], device=self.target.device)
        with self.target.lent() as model:
            before = time.perf_counter()
            try:
                output = model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=min(request.max_new_tokens, context - length),
                    pad_token_id=0,
                    **_settings(request.sampling),
                )
            except RuntimeError as error:  # what sampling from NaN ends in
                raise NumericalError(f"transformers could not sample: {error}.") from error
            tokens = output[0, length:].tolist()
            seconds = time.perf_counter() - before
            _check_finite(model, output[:, :-1])
        return Generation(tokens, self._reason(tokens, length), seconds, rounds=len(tokens), seconds_by_part={})

    def _reason(self, tokens: list[int], length: int) -> FinishReason:
        if tokens[-1] in self.target.end_tokens:
            return FinishReason.END_OF_SEQUENCE
        full = length + len(tokens) == self.target.context_limit
        return FinishReason.CONTEXT_LIMIT if full else FinishReason.TOKEN_LIMIT


def _settings(sampling: SamplingSettings) -> dict[str, object]:
    """What `generate` calls these settings; its sampling is seeded here."""
    if sampling.greedy:
        return {"do_sample": False}
    torch.manual_seed(sampling.seed)
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
    }


@torch.inference_mode()
def _check_finite(model: PreTrainedModel, text: torch.Tensor) -> None:
    """Refuses a text that the model lost its mind over: NaN anywhere in it reaches the last position."""
    if not model(text, use_cache=False, logits_to_keep=1).logits.isfinite().all():
        raise NumericalError("The target returned NaN or infinite logits. Its weights or the dtype are at fault.")


def check_runner(name: str) -> None:
    """Refuses a name that `make_runner` would refuse, without needing a decoder.

    Raises:
        UnknownNameError: no such runner, controller or option; the message offers the closest names.
        ParameterError: a value that an option cannot take.
    """
    if name == TRANSFORMERS:
        return
    if name.partition(":")[0] not in controller_names():
        raise UnknownNameError("controller", name, [*controller_names(), TRANSFORMERS])
    make_controller(name)


def parse_rivals(text: str | None) -> dict[str, str]:
    """Drafts by name from ``NAME=DRAFT,NAME=DRAFT``; empty for None.

    Raises:
        ParameterError: an entry of another form, or two of one name.
    """
    rivals: dict[str, str] = {}
    for entry in text.split(",") if text else ():
        name, _, draft = entry.partition("=")
        if not (name and draft) or name in rivals:
            raise ParameterError(f"Expected drafts as NAME=DRAFT, each with a name of its own; got {entry!r}.")
        rivals[name] = draft
    return rivals


def make_runner(name: str, decoder: LiveDecoder) -> Runner:
    """A runner by its name: `TRANSFORMERS`, or a controller as in `make_controller`.

    Raises as `check_runner` does.
    """
    check_runner(name)
    if name == TRANSFORMERS:
        return TransformersRunner(decoder.target)
    return ControllerRunner(name, decoder)

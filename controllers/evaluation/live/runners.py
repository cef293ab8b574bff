"""Runners: ways to continue a text behind one call, such as a controller on a decoder or transformers' `generate`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from specgym.controllers.evaluation.results.provenance import shareable
from specgym.controllers.registry import controller_names, make_controller
from specgym.controllers.run import Generation, run
from specgym.env.common.errors import NumericalError, ParameterError, SpecGymError, UnknownNameError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.models.target import TargetModel
from specgym.env.tree.rounds import FinishReason, Request, check_fits, check_known
from specgym.env.tree.sampling import SamplingSettings

TRANSFORMERS = "transformers"
"""name of transformers' own `generate`, without a draft"""


class RunnerError(SpecGymError):
    """A runner failed on a text; the message is the reason."""


class Runner(Protocol):
    """Continues texts, one at a time."""

    name: str
    baseline: str | None
    """name of the runner whose output this one's is compared with; None for our plain decoding"""
    target: TargetModel | None
    """the model that chooses the tokens; None for the benchmark's own target"""

    def __call__(self, request: Request) -> Generation:
        """Runs a request to its end."""


class ControllerRunner:
    """Runs a controller on a decoder.

    Args:
        controller: the controller's name, with options, see `make_controller`.
        decoder: the decoder to steer.
        name: the runner's name in results; the controller's by default.
        baseline: see `Runner`.
    """

    def __init__(
        self, controller: str, decoder: LiveDecoder, name: str | None = None, baseline: str | None = None
    ) -> None:
        self.name, self.baseline, self.decoder = name or controller, baseline, decoder
        self.target: TargetModel | None = decoder.target
        self.controller = make_controller(controller)

    def __call__(self, request: Request) -> Generation:
        """Runs a request to its end."""
        return run(self.decoder, self.controller, request)


class TransformersRunner:
    """Decodes plainly by transformers' `generate`, with the attention that transformers chooses by itself.

    Only the request counts, its logits processors included; the model's own generation settings are left out. Its
    sampling draws other noise than ours. Beyond temperature 0 only its speed can be compared, not its text.

    Args:
        model: the target, borrowed while a request runs.
    """

    name = TRANSFORMERS
    baseline: str | None = None
    target: TargetModel | None = None

    def __init__(self, model: TargetModel) -> None:
        self.model = model

    def __call__(self, request: Request) -> Generation:
        """Runs a request to its end.

        Raises:
            LimitError: see `LiveDecoder.start`.
            NumericalError: the target returned NaN or infinite logits, from which `generate` would take some token.
        """
        length, context = len(request.prompt), self.model.context_limit
        check_fits(length, context)
        check_known(request.prompt, self.model.vocabulary)
        prompt = torch.tensor([request.prompt], device=self.model.device)
        ends = frozenset[int]() if request.ignore_end else self.model.end_tokens
        with self.model.lent() as model, _request_alone(model, ends):
            before, most = time.perf_counter(), min(request.max_new_tokens, context - length)
            options = _options(request.sampling) | {"attention_mask": torch.ones_like(prompt)}
            options["logits_processor"] = LogitsProcessorList(request.processors or ())
            try:
                output = model.generate(prompt, max_new_tokens=most, **options)
            except RuntimeError as error:  # sampling from NaN ends in one
                raise NumericalError(f"transformers could not sample: {error}.") from error
            tokens = output[0, length:].tolist()
            seconds = time.perf_counter() - before
            _check_finite(model, output[:, :-1])
        finished = finish_reason(tokens, length, context, ends)
        return Generation(tokens, finished, seconds, rounds=len(tokens), seconds_by_part={})


@contextlib.contextmanager
def _request_alone(model: PreTrainedModel, end_tokens: Collection[int]) -> Iterator[None]:
    """Replaces the model's own generation settings, with which `generate` fills what a call leaves open."""
    own = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=sorted(end_tokens) or None, pad_token_id=0)
    try:
        yield
    finally:
        model.generation_config = own


def finish_reason(tokens: Sequence[int], prompt: int, context: int, end_tokens: Collection[int]) -> FinishReason:
    """Returns why a text ended, by its generated tokens and the lengths of its prompt and of the context [tokens]."""
    if tokens[-1] in end_tokens:
        return FinishReason.END_OF_SEQUENCE
    return FinishReason.CONTEXT_LIMIT if prompt + len(tokens) == context else FinishReason.TOKEN_LIMIT


def _options(sampling: SamplingSettings) -> dict[str, Any]:
    """Returns these settings by `generate`'s names, and seeds its sampling."""
    if sampling.greedy:
        return {"do_sample": False}
    torch.manual_seed(sampling.seed)
    return {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p")} | {"do_sample": True}


@torch.inference_mode()
def _check_finite(model: PreTrainedModel, text: torch.Tensor) -> None:
    """Refuses a text for which the model computed NaN, which spreads from any position to the last one."""
    if not model(text, use_cache=False, logits_to_keep=1).logits.isfinite().all():
        raise NumericalError("The target returned NaN or infinite logits. Its weights or the dtype are at fault.")


def parse_pairs(text: str | None, expected: str) -> dict[str, str]:
    """Reads values by name from ``NAME=VALUE,NAME=VALUE``; empty for None.

    Args:
        text: the pairs.
        expected: how an error describes them, such as "drafts as NAME=DRAFT".

    Raises:
        ParameterError: an entry of another form, or two of one name.
    """
    values: dict[str, str] = {}
    for entry in text.split(",") if text else ():
        name, _, value = entry.partition("=")
        if not (name and value) or name in values:
            raise ParameterError(f"Expected {expected}, each with a name of its own; got {entry!r}.")
        values[name] = value
    return values


def check_runner(name: str) -> None:
    """Refuses a name that `make_runner` would refuse, without needing a decoder.

    Raises:
        UnknownNameError: no such runner, controller or option; the message offers the closest names.
        ParameterError: a value that an option cannot take.
    """
    if name == TRANSFORMERS:
        return
    try:
        make_controller(name)
    except UnknownNameError as error:
        if error.what == "controller":
            raise UnknownNameError("controller", error.name, [*controller_names(), TRANSFORMERS]) from error
        raise


def runner_labels(names: Sequence[str]) -> dict[str, str]:
    """Returns the name of each runner in results, without folders of this machine: of two alike, one gets a number."""
    labels: dict[str, str] = {}
    for name in names:
        label = shareable(name)
        count = sum(shareable(other) == label for other in labels)
        labels[name] = f"{label}#{count + 1}" if count else label
    return labels


def make_runner(name: str, decoder: LiveDecoder, label: str | None = None) -> Runner:
    """Makes a runner by its name: `TRANSFORMERS`, or a controller as in `make_controller`.

    Args:
        name: the name.
        decoder: the decoder to steer.
        label: the runner's name in results; `name` by default.

    Raises as `check_runner` does.
    """
    check_runner(name)
    return TransformersRunner(decoder.target) if name == TRANSFORMERS else ControllerRunner(name, decoder, label)

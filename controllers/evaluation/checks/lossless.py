"""Checks of exactness: speculation against plain decoding, plain decoding against transformers, replay against live."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from transformers import PretrainedConfig

from specgym.controllers.evaluation.live.runners import TransformersRunner
from specgym.controllers.registry import make_controller
from specgym.controllers.rules.phases import PHASE_1, fixed_tree
from specgym.controllers.run import Generation, run, steer
from specgym.env.common.errors import PairError, ParameterError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.decoding.pair import ModelPair
from specgym.env.drafts import CausalDraft, Draft, LookupDraft
from specgym.env.latency.families import overhead_bound
from specgym.env.models.target import CachedModel, TargetModel
from specgym.env.replay.decoder import ReplayDecoder
from specgym.env.replay.recording.jobs import RecordingJob, record_text, trace_header
from specgym.env.replay.recording.recorder import Recorder, SupersetRule
from specgym.env.tree.rounds import Decoder, Request, RoundOutcome, RoundSeconds
from specgym.env.tree.sampling import SamplingSettings

RULE = SupersetRule(floor=0.03, fixed=(fixed_tree().parameters, PHASE_1))
"""covers every registered controller"""
_Counts: TypeAlias = Generation | RoundOutcome  # of a text, or of a round


@dataclass(frozen=True)
class ExactnessCase:
    """Comparison of all prompts for one controller and draft, or for transformers."""

    runner: str
    """the controller's name, or ``transformers``"""
    draft: str
    """the draft's kind; empty for transformers"""
    temperature: float
    """0 for greedy decoding"""
    seed: int
    """seed of the sampling noise"""
    prompts: int
    """texts compared"""
    identical: int
    """texts equal to plain decoding's, token for token"""
    drafted: int
    """draft tokens verified [tokens]"""
    accepted: int
    """draft tokens committed [tokens]"""

    @property
    def informative(self) -> bool:
        """Whether some draft tokens were accepted and some were not; otherwise equal texts prove little."""
        return self.draft == "" or 0 < self.accepted < self.drafted

    @property
    def exact(self) -> bool:
        """Whether every text is equal, and the comparison is informative."""
        return self.identical == self.prompts > 0 and self.informative


def check_layers(layers: int, config: PretrainedConfig) -> None:
    """Refuses a number of layers for `shallow_draft`: none, or all of the target's, which would never be wrong.

    Raises:
        PairError: the target's configuration does not name its number of layers.
        ParameterError: `layers` is below 1, or not below the target's.
    """
    text = config.get_text_config(decoder=True)
    available = getattr(text, "num_hidden_layers", None)
    if available is None:
        raise PairError(
            f"The configuration of model type {text.model_type!r} names no num_hidden_layers, so no draft can be cut "
            "from it. Use another target."
        )
    if not 1 <= layers < available:
        raise ParameterError(
            f"layers must be 1 or more and fewer than the {available} that the target has; got {layers}."
        )


def shallow_draft(target: TargetModel, layers: int) -> CausalDraft:
    """Makes a causal draft of the target's first layers; it shares the target's weights.

    Raises:
        PairError, ParameterError: as in `check_layers`.
    """
    model = target.model
    check_layers(layers, model.config)
    with target.lent():
        shallow = copy.copy(model)
        shallow._modules = dict(model._modules)
        shallow.config = copy.deepcopy(model.config)
        decoder = copy.copy(model.model)
        decoder._modules = dict(decoder._modules)
        decoder.layers = torch.nn.ModuleList(list(decoder.layers)[:layers])
        decoder.config = shallow.config
        shallow.model = decoder
    shallow.config.num_hidden_layers = layers
    return CausalDraft(CachedModel(shallow), target.vocabulary)


def check_drafts(
    target: TargetModel,
    drafts: Sequence[Draft],
    controllers: Sequence[str],
    requests: Sequence[Request],
    progress: Callable[[str], None] = lambda name: None,
) -> list[ExactnessCase]:
    """Compares every controller and draft with plain decoding.

    Args:
        target: the model.
        drafts: the drafts.
        controllers: names of controllers that speculate.
        requests: texts to continue, all sampled alike.
        progress: called with the name of each controller that is done.
    """
    decoder = LiveDecoder(target, drafts[0])
    expected = [_plain_tokens(decoder, request) for request in requests]
    progress("autoregressive")
    cases = []
    for draft in drafts:
        decoder = LiveDecoder(target, draft)
        for name in controllers:
            generations = [run(decoder, make_controller(name), request) for request in requests]
            identical = [text.tokens == plain for text, plain in zip(generations, expected, strict=True)]
            cases.append(_case(name, draft, requests[0].sampling, identical, generations))
            progress(name)
    return cases


def check_transformers(
    target: TargetModel, draft: Draft, prompts: Sequence[tuple[int, ...]], max_new_tokens: int
) -> ExactnessCase:
    """Compares plain greedy decoding with transformers' `generate`."""
    decoder, reference = LiveDecoder(target, draft), TransformersRunner(target)
    requests = [Request(prompt, max_new_tokens) for prompt in prompts]
    identical = [_plain_tokens(decoder, request) == reference(request).tokens for request in requests]
    return ExactnessCase("transformers", "", 0.0, 0, len(prompts), sum(identical), 0, 0)


def check_replay(
    pair: ModelPair,
    controllers: Sequence[str],
    requests: Sequence[Request],
    progress: Callable[[str], None] = lambda name: None,
) -> list[ExactnessCase]:
    """Records texts and compares every controller's rounds on them with its rounds live.

    Args:
        pair: target and draft model.
        controllers: names of controllers that speculate.
        requests: texts to continue, all sampled alike.
        progress: called with the name of every controller that is done.

    Returns:
        A case for each controller. `identical` counts texts all of whose rounds have the same tokens, trees and rows.

    Raises:
        LimitError: a text is too long to record.
        PairError: the pair's draft is prompt lookup.
    """
    sampling, recorder = requests[0].sampling, Recorder(pair.target, pair.draft, RULE)
    plain = LiveDecoder(pair.target, LookupDraft())
    texts = [
        record_text(recorder, RecordingJob(str(number), "", request), (*request.prompt, *_plain_tokens(plain, request)))
        for number, request in enumerate(requests)
    ]
    machine = overhead_bound()
    # Some controllers use the machine's costs, so both decoders get the same.
    live = LiveDecoder(pair.target, pair.draft, machine.costs(sampling.greedy))
    replay = ReplayDecoder(texts, trace_header(pair, RULE), machine)
    cases = []
    for name in controllers:
        played = [(_rounds(live, name, request), _rounds(replay, name, request)) for request in requests]
        outcomes = [outcome for rounds, _ in played for outcome in rounds]
        identical = [one == other for one, other in played]
        cases.append(_case(f"{name}, replayed", pair.draft, sampling, identical, outcomes))
        progress(name)
    return cases


def _rounds(decoder: Decoder, controller: str, request: Request) -> list[RoundOutcome]:
    """Returns all rounds, without their times."""
    steps = steer(decoder, make_controller(controller), request)
    return [replace(step.outcome, seconds=RoundSeconds()) for step in steps]


def _plain_tokens(decoder: LiveDecoder, request: Request) -> list[int]:
    return run(decoder, make_controller("autoregressive"), request).tokens


def _case(
    runner: str, draft: Draft, sampling: SamplingSettings, identical: Sequence[bool], outcomes: Sequence[_Counts]
) -> ExactnessCase:
    drafted, accepted = (sum(getattr(outcome, name) for outcome in outcomes) for name in ("drafted", "accepted"))
    settings = sampling.temperature, sampling.seed
    return ExactnessCase(runner, draft.kind, *settings, len(identical), sum(identical), drafted, accepted)

"""Is replay what live decoding does? Every controller's rounds on recordings against its rounds on the models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from specgym.controllers.evaluation.checks.lossless import ExactnessCase
from specgym.controllers.registry import make_controller
from specgym.controllers.rules.phases import PHASE_1, fixed_tree
from specgym.controllers.run import run, steer
from specgym.env.decoding.live import LiveDecoder
from specgym.env.decoding.pair import ModelPair
from specgym.env.drafts import LookupDraft
from specgym.env.latency.families import overhead_bound
from specgym.env.replay.decoder import ReplayDecoder
from specgym.env.replay.recording.jobs import RecordingJob, record_text, trace_header
from specgym.env.replay.recording.recorder import Recorder, SupersetRule
from specgym.env.tree.rounds import Decoder, Request, RoundOutcome, RoundSeconds
from specgym.env.tree.sampling import SamplingSettings

RULE = SupersetRule(floor=0.03, fixed=(fixed_tree().parameters, PHASE_1))
"""covers every registered controller"""


def check_replay(
    pair: ModelPair,
    controllers: Sequence[str],
    prompts: Sequence[tuple[int, ...]],
    *,
    sampling: SamplingSettings,
    max_new_tokens: int,
    progress: Callable[[str], None] = lambda name: None,
) -> list[ExactnessCase]:
    """Records texts and compares every controller's rounds on them with its rounds live.

    Args:
        pair: target and draft model.
        controllers: names of controllers that speculate.
        prompts: token ids of the prompts.
        sampling: how tokens are chosen.
        max_new_tokens: most tokens of a text [tokens].
        progress: told the name of every controller when it is through.

    Returns:
        A case for each controller; `identical` counts texts whose every round is the same: tokens, trees and rows.

    Raises:
        LimitError: a text is too long to record.
        PairError: the pair's draft is prompt lookup.
    """
    requests = [Request(prompt, max_new_tokens, sampling) for prompt in prompts]
    header, recorder = trace_header(pair, RULE), Recorder(pair.target, pair.draft, RULE)
    plain = LiveDecoder(pair.target, LookupDraft())
    texts = []
    for number, request in enumerate(requests):
        answer = run(plain, make_controller("autoregressive"), request).tokens
        job = RecordingJob(str(number), "", request)
        texts.append(record_text(recorder, job, (*request.prompt, *answer)))
    machine = overhead_bound()
    # Some controllers go by the machine's costs: both decoders tell the same.
    live = LiveDecoder(pair.target, pair.draft, machine.costs(sampling.greedy))
    replay = ReplayDecoder(texts, header, machine)
    cases = []
    for name in controllers:
        played = [(_rounds(live, name, request), _rounds(replay, name, request)) for request in requests]
        cases.append(
            ExactnessCase(
                runner=f"{name}, replayed",
                draft=pair.draft.kind,
                temperature=sampling.temperature,
                seed=sampling.seed,
                prompts=len(prompts),
                identical=sum(one == other for one, other in played),
                drafted=sum(each.drafted for one, _ in played for each in one),
                accepted=sum(each.accepted for one, _ in played for each in one),
            )
        )
        progress(name)
    return cases


def _rounds(decoder: Decoder, controller: str, request: Request) -> list[RoundOutcome]:
    """All rounds, without the time that they took."""
    steps = steer(decoder, make_controller(controller), request)
    return [dataclasses.replace(step.outcome, seconds=RoundSeconds()) for step in steps]

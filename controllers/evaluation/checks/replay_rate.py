"""How many rounds a second replay plays, one text at a time and many together, and how fast texts are recorded."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specgym.controllers.evaluation.checks.replay_check import RULE
from specgym.controllers.registry import make_controller
from specgym.controllers.run import run
from specgym.env.decoding.pair import ModelPair
from specgym.env.latency.latency_profile import LatencyProfile
from specgym.env.prompts import Prompt
from specgym.env.replay.decoder import ReplayDecoder
from specgym.env.replay.recording.jobs import plan_jobs, record_texts, trace_header
from specgym.env.replay.sources import text_request
from specgym.env.replay.traces.file import Trace, TraceWriter, read_trace
from specgym.env.replay.traces.records import TraceText
from specgym.env.replay.vector import ReplayVectorEnv
from specgym.env.tree.sampling import SamplingSettings


@dataclass(frozen=True)
class Speed:
    """How fast something was."""

    what: str
    rounds: int
    """rounds played, or positions recorded"""
    seconds: float
    """time they took [s]"""

    @property
    def per_second(self) -> float:
        """How many a second."""
        return self.rounds / self.seconds


def single_speeds(
    trace: Trace, texts: Sequence[TraceText], profile: LatencyProfile, controller: str, repeats: int
) -> list[Speed]:
    """One text after the other under a controller: rounds that are played for the first time, then known ones.

    Args:
        trace: where the texts are from.
        texts: the texts.
        profile: what rounds take.
        controller: its name, see `make_controller`.
        repeats: times that the known rounds are played; the median of their speeds is told.

    Raises:
        UnknownNameError: there is no such controller.
        UnrecordedError, UnmeasuredError: the trace or the profile does not cover it.
    """
    decoder, policy = ReplayDecoder(trace.texts, trace.header, profile), make_controller(controller)
    requests = [text_request(text) for text in texts]

    def play() -> int:
        # The round that reads the prompt is not steered, and takes no time here.
        return sum(run(decoder, policy, request).rounds - 1 for request in requests)

    first = _timed("single, first time", play)
    return [first, _median([_timed("single, known rounds", play) for _ in range(repeats)])]


def vector_speeds(envs: ReplayVectorEnv, steps: int, repeats: int, seed: int = 0) -> list[Speed]:
    """All episodes together under random actions, once all that they may bring is known.

    Args:
        envs: the environment.
        steps: steps of each measurement.
        repeats: measurements, of which the median is told.
        seed: of texts and actions.

    Raises:
        UnrecordedError, UnmeasuredError: the trace or a profile does not cover the grid.
    """
    tabulated = _timed("tabulating", lambda: _tabulate(envs))
    envs.reset(seed=seed)
    sizes = np.asarray(envs.grid.nvec)
    actions = np.random.default_rng(seed).integers(sizes, size=(steps, envs.num_envs, len(sizes)))

    def play() -> int:
        for action in actions:
            envs.step(action)
        return steps * envs.num_envs

    play()  # memory is taken and caches are filled
    together = _median([_timed(f"vectorised, {envs.num_envs} episodes", play) for _ in range(repeats)])
    return [tabulated, together]


def recording_speed(pair: ModelPair, prompts: Sequence[Prompt], max_new_tokens: int) -> Speed:
    """Records answers to prompts, each greedily and sampled at temperature 1, as widely as every controller needs.

    Args:
        pair: target and draft model.
        prompts: the first turn of each is answered.
        max_new_tokens: most tokens of an answer.

    Raises:
        PairError: the pair's draft is prompt lookup.
        LimitError: a prompt is empty, or a text too long for the pair.
    """
    jobs = plan_jobs(pair, prompts, [SamplingSettings(), SamplingSettings(1.0)], max_new_tokens)

    def record() -> int:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "texts.sgt"
            with TraceWriter(path, trace_header(pair, RULE)) as writer:
                record_texts(pair, jobs, RULE, writer)
            return sum(len(text.tokens) - text.prompt for text in read_trace(path).texts)

    return _timed("recording [positions]", record)


def _tabulate(envs: ReplayVectorEnv) -> int:
    envs.tabulate_all()
    roots = sum(len(text.tokens) - text.prompt - 1 for text in envs.replays.texts)
    return roots * len(envs.replays.table.choices)


def _timed(what: str, play: Callable[[], int]) -> Speed:
    began = time.perf_counter()
    rounds = play()
    return Speed(what, rounds, time.perf_counter() - began)


def _median(speeds: Sequence[Speed]) -> Speed:
    return sorted(speeds, key=lambda speed: speed.per_second)[len(speeds) // 2]

"""Measures the rounds a second of replay, one text at a time and many together, and the speed of recording."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specgym.controllers.evaluation.checks.lossless import RULE
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
from specgym.env.tree.rounds import Stopwatch
from specgym.env.tree.sampling import SamplingSettings


@dataclass(frozen=True)
class Speed:
    """The measured speed of something."""

    what: str
    rounds: int
    """rounds played, or positions recorded"""
    seconds: float
    """time they took [s]"""

    @property
    def per_second(self) -> float:
        """Rounds or positions a second."""
        return self.rounds / self.seconds


def single_speeds(
    trace: Trace, texts: Sequence[TraceText], profile: LatencyProfile, controller: str, repeats: int
) -> list[Speed]:
    """Measures one text after the other under a controller: rounds played for the first time, then known rounds.

    Args:
        trace: the trace that holds the texts.
        texts: the texts.
        profile: of the machine.
        controller: its name, see `make_controller`.
        repeats: measurements of the known rounds; their median is returned.

    Raises:
        UnknownNameError: no such controller.
        UnrecordedError, UnmeasuredError: the trace or the profile does not cover its choices.
    """
    decoder, policy = ReplayDecoder(trace.texts, trace.header, profile), make_controller(controller)
    requests = [text_request(text) for text in texts]

    def play() -> int:
        # The round that reads the prompt is not steered, and takes no time here.
        return sum(run(decoder, policy, request).rounds - 1 for request in requests)

    return [_timed("single, first time", play), _median_speed("single, known rounds", play, repeats)]


def random_speeds(env: Any, rounds: int, repeats: int) -> list[Speed]:
    """Measures one environment under random actions of its space: rounds played for the first time, then later ones.

    Args:
        env: the Gymnasium environment, perhaps in wrappers.
        rounds: rounds of each measurement.
        repeats: measurements of the later rounds; their median is returned.

    Raises:
        UnrecordedError, UnmeasuredError: the trace or the profile does not cover the grid.
    """
    env.reset(seed=0)
    env.action_space.seed(0)

    def play() -> int:
        for _ in range(rounds):
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                env.reset()
        return rounds

    first = _timed("single, random actions, first time", play)
    return [first, _median_speed("single, random actions", play, repeats)]


def vector_speeds(envs: ReplayVectorEnv, steps: int, repeats: int) -> list[Speed]:
    """Measures all episodes together under random actions, before and after tabulating every action.

    Args:
        envs: the environment.
        steps: steps of each measurement.
        repeats: measurements; their median is returned.

    Raises:
        UnrecordedError, UnmeasuredError: the trace or a profile does not cover the grid.
    """

    def tabulate() -> int:
        envs.tabulate_all()
        roots = sum(len(text.tokens) - text.prompt - 1 for text in envs.replays.texts)
        return roots * len(envs.replays.table.choices)

    def play() -> int:
        for action in actions:
            envs.step(action)
        return steps * envs.num_envs

    envs.reset(seed=0)
    sizes = np.asarray(envs.grid.nvec)
    actions = np.random.default_rng(0).integers(sizes, size=(steps, envs.num_envs, len(sizes)))
    name = f"vectorised, {envs.num_envs} episodes"
    speeds = [_median_speed(name, play, repeats), _timed("tabulating", tabulate)]
    play()  # a warm-up
    return [*speeds, _median_speed(f"{name}, tabulated", play, repeats)]


def recording_speed(pair: ModelPair, prompts: Sequence[Prompt], max_new_tokens: int) -> Speed:
    """Measures the recording of answers, greedy and at temperature 1, by a rule that covers all controllers.

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


def _timed(what: str, play: Callable[[], int]) -> Speed:
    watch = Stopwatch()
    return Speed(what, play(), watch.lap())


def _median_speed(what: str, play: Callable[[], int], repeats: int) -> Speed:
    return sorted((_timed(what, play) for _ in range(repeats)), key=lambda speed: speed.per_second)[repeats // 2]

"""`specgym/Replay-v0`: the environment on recorded texts and a latency profile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specgym.env.common.errors import ParameterError
from specgym.env.gym.grid import ParameterGrid
from specgym.env.gym.requests import Requests
from specgym.env.gym.speculation import SpeculationEnv
from specgym.env.replay.decoder import ReplayDecoder
from specgym.env.replay.sources import ProfileSource, TraceSource, choose_texts, find_profile, find_trace, text_request


class ReplaySpeculation(SpeculationEnv):
    """``specgym/Replay-v0``: `SpeculationEnv` on recorded texts and a latency profile.

    A seed decides everything, rewards included. The plain step of a reward is the profile's plain round at the root of
    the round, which takes longer as the text grows. So a plain round is worth `1 - lam` at any position, less the cost
    of observing the draft. With the same name, `gymnasium.make_vec` makes a `ReplayVectorEnv`, which steps many texts
    at once.

    Args:
        decoder: a decoder, or a function that makes one; if None, one is made from `traces` and `profile`.
        traces: files of traces of one pair by one rule, or a trace that was read; the shipped one if None.
        profile: a family's name, the file of a latency profile, or the profile itself; `DEFAULT_PROFILE` if None.
        split: texts to replay: train, validation or test; None for all.
        temperature: texts to replay, by the temperature that they were sampled at; None for all.
        grid: what actions stand for; if None, the default grid, reduced to actions that the trace can replay.
        requests: texts to generate; if None, every recorded text of `split` and `temperature`.
        options: `lam`, `plain_step_seconds`, `observes_draft`, `tokenizer` and `render_mode` of `SpeculationEnv`.

    Raises:
        ParameterError: a decoder together with a trace or a profile, or as in `SpeculationEnv`.
        TraceError, ProfileError, UnknownNameError: as in `find_trace`, `find_profile` and `choose_texts`.
    """

    def __init__(
        self,
        decoder: ReplayDecoder | Callable[[], ReplayDecoder] | None = None,
        *,
        traces: TraceSource | None = None,
        profile: ProfileSource | None = None,
        split: str | None = "train",
        temperature: float | None = None,
        grid: ParameterGrid | None = None,
        requests: Requests | None = None,
        **options: Any,
    ) -> None:
        if decoder is None:
            trace = find_trace(traces)
            decoder = ReplayDecoder(trace.texts, trace.header, find_profile(profile))
        elif traces is not None or profile is not None:
            raise ParameterError("A decoder has its texts and its profile: give either it, or traces and profile.")
        elif callable(decoder):
            decoder = decoder()
        if requests is None:
            requests = [text_request(text) for text in choose_texts(list(decoder.texts.values()), split, temperature)]
        options.setdefault("plain_step_seconds", decoder.plain_seconds)
        grid = ParameterGrid().covered(decoder.header.rule) if grid is None else grid
        super().__init__(decoder, requests, grid=grid, **options)

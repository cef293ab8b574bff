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
from specgym.env.replay.tabulation import covered_grid


class ReplaySpeculation(SpeculationEnv):
    """``specgym/Replay-v0``: recorded texts and a latency profile. Everything else is `SpeculationEnv`'s.

    A seed decides everything, rewards included. Their plain round is the profile's at the root of the round, since it
    takes longer as the text grows: so a plain round is worth `1 - lam` anywhere, less what observing the draft costs.
    `gymnasium.make_vec` makes `ReplayVectorEnv` of this name, which steps many texts at once.

    Args:
        decoder: a decoder that is ready, or a function that makes one; if None, one is made of `traces` and `profile`.
        traces: files of traces of one pair by one rule, or a trace that was read; the shipped one if None.
        profile: what rounds take: a family's name, the file of a latency profile, or the profile; `DEFAULT_PROFILE` if
            None.
        split: texts to replay: train, validation or test; None for all.
        temperature: texts to replay, by the temperature that they were sampled at; None for all.
        grid: what actions stand for; if None, the default grid as far as the trace answers all of it.
        requests: what to generate; if None, every recorded text of `split` and `temperature`.
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
        super().__init__(decoder, requests, grid=covered_grid(decoder.header) if grid is None else grid, **options)

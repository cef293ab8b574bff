"""What stands behind the environments' names: `SpeculationEnv` with a decoder and requests of its own making."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from env.errors import ParameterError
from env.grid import ParameterGrid
from env.live import LiveDecoder
from env.observation import Costs
from env.pair import DEFAULT_TARGET, ModelPair, encode_chat, load_pair
from env.prompts import load_prompts
from env.recordings import ProfileSource, TraceSource, choose_texts, find_profile, find_trace, text_request
from env.replay import ReplayDecoder
from env.requests import Requests
from env.rounds import Decoder, Request, check_fits
from env.sampling import SamplingSettings
from env.speculation import SpeculationEnv
from env.tabulation import covered_grid

__all__ = ["LiveSpeculation", "ReplaySpeculation", "prompt_requests"]


class LiveSpeculation(SpeculationEnv):
    """``specgym/Live-v0``: real models, wall clock. Everything else is `SpeculationEnv`'s.

    Args:
        decoder: a decoder that is ready, or a function that makes one; if None, a pair is loaded by the next four
            arguments. Gymnasium copies arguments when an environment's `spec` is asked for: hand it a function where
            models are large.
        target: the target, as in `load_pair`.
        draft: the draft, likewise.
        dtype: precision, likewise.
        device: device, likewise.
        costs: what observations say of the machine.
        requests: what to generate; if None, the first turns of `prompts`. A ready decoder needs it.
        prompts: source of prompts, as in `load_prompts`.
        limit: most prompts, balanced over their categories; None for all.
        max_new_tokens: most tokens of each answer [tokens].
        temperature: 0 decodes greedily.
        top_k: see `SamplingSettings`.
        top_p: see `SamplingSettings`.
        seed: of the sampling noise of the first prompt; the others' follow.
        options: `grid`, `lam`, `plain_step_seconds`, `observes_draft`, `tokenizer` and `render_mode` of
            `SpeculationEnv`.

    Raises:
        ParameterError: a decoder without requests, or as in `SpeculationEnv`.
        LimitError: a prompt that does not fit the target's context.
        UnknownNameError, ModelFileError, PairError, PromptError: as in `load_pair` and `load_prompts`.
    """

    def __init__(
        self,
        decoder: Decoder | Callable[[], Decoder] | None = None,
        *,
        target: str = DEFAULT_TARGET,
        draft: str | None = None,
        dtype: str = "bfloat16",
        device: str = "cpu",
        costs: Costs | None = None,
        requests: Requests | None = None,
        prompts: str = "builtin",
        limit: int | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if decoder is None:
            sampling = SamplingSettings(temperature, top_k, top_p, seed)
            pair = load_pair(target, draft, dtype, device)
            decoder = LiveDecoder(pair.target, pair.draft, costs)
            options = {"tokenizer": pair.tokenizer} | options
            if requests is None:
                requests = prompt_requests(pair, prompts, limit, max_new_tokens, sampling)
        elif requests is None:
            raise ParameterError("A decoder was given without requests: give requests=[Request(...), ...] too.")
        super().__init__(decoder() if callable(decoder) else decoder, requests, **options)


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


def prompt_requests(
    pair: ModelPair, prompts: str, limit: int | None, max_new_tokens: int, sampling: SamplingSettings
) -> list[Request]:
    """Requests for the first turns of a source's prompts, as a chat; each is sampled with a seed of its own.

    Args:
        pair: whose tokenizer and context they are for.
        prompts: source, as in `load_prompts`.
        limit: most prompts; None for all.
        max_new_tokens: most tokens of each answer [tokens].
        sampling: how they are sampled; its seed is the first one's, the others' follow.

    Raises:
        LimitError: a prompt does not fit the target's context, or `max_new_tokens` is not positive.
        PromptError: as in `load_prompts`.
    """
    encoded = [encode_chat(pair.tokenizer, prompt.turns[:1]) for prompt in load_prompts(prompts, limit)]
    for tokens in encoded:
        check_fits(len(tokens), pair.target.context_limit)
    return [
        Request(tokens, max_new_tokens, dataclasses.replace(sampling, seed=sampling.seed + index))
        for index, tokens in enumerate(encoded)
    ]

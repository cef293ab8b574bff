"""`specgym/Live-v0`: the environment on real models and the wall clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from specgym.env.common.errors import ParameterError
from specgym.env.common.processes import one_thread_if_forked
from specgym.env.decoding.live import LiveDecoder
from specgym.env.decoding.pair import DEFAULT_TARGET, ModelPair, encode_chat, load_pair
from specgym.env.gym.features import FeatureVector
from specgym.env.gym.requests import Requests
from specgym.env.gym.speculation import SpeculationEnv
from specgym.env.prompts import load_prompts
from specgym.env.tree.observation import Costs
from specgym.env.tree.rounds import Decoder, Request, check_fits
from specgym.env.tree.sampling import SamplingSettings


class LiveSpeculation(SpeculationEnv):
    """``specgym/Live-v0``: real models and the wall clock.

    ## Description
    Rounds are those of `SpeculationEnv`, played by a `LiveDecoder`. Texts depend on the seed alone, rewards on the
    time that the machine takes. In a process that was forked, as Gymnasium's asynchronous vector environments are by
    default on Linux, torch uses one thread. Start processes by ``context="spawn"`` to use more, or a GPU.

    ## Observation, Action, Reward, Episode end
    See `SpeculationEnv`.

    ## Arguments
    Args:
        decoder: a decoder, or a function that makes one; if None, a pair is loaded by the next four arguments.
            Gymnasium copies the arguments of an environment for its `spec`, so pass a function where models are large.
        target: the target, see `load_pair`.
        draft: the draft, see `load_pair`.
        dtype: the precision, see `load_pair`.
        device: the device, see `load_pair`.
        costs: the machine's costs in observations; unknown if None.
        requests: texts to generate; if None, the first turns of `prompts`. Required with a ready decoder.
        prompts: source of prompts, see `load_prompts`.
        limit: most prompts, balanced over their categories; None for all.
        max_new_tokens: most tokens of each answer [tokens].
        temperature: sampling temperature; 0 decodes greedily.
        top_k: see `SamplingSettings`.
        top_p: see `SamplingSettings`.
        seed: seed of the sampling noise of the first prompt; every further prompt has the next seed.
        options: `grid`, `lam`, `plain_step_seconds`, `observes_draft`, `tokenizer` and `render_mode` of
            `SpeculationEnv`.

    Raises:
        ParameterError: a decoder without requests, or as in `SpeculationEnv`.
        LimitError: a prompt that does not fit the target's context.
        UnknownNameError, ModelFileError, PairError, PromptError: as in `load_pair` and `load_prompts`.

    ## Version history
    - v0: first version
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
        one_thread_if_forked()
        if decoder is None:
            sampling = SamplingSettings(temperature, top_k, top_p, seed)
            pair = load_pair(target, draft, dtype, device)
            decoder = LiveDecoder(pair.target.fork(), pair.draft.fork(), costs)
            options = {"tokenizer": pair.tokenizer} | options
            if requests is None:
                requests = _prompt_requests(pair, prompts, limit, max_new_tokens, sampling)
        elif requests is None:
            raise ParameterError("A decoder was given without requests: give requests=[Request(...), ...] too.")
        decoder = decoder() if callable(decoder) else decoder
        if type(decoder) is LiveDecoder:  # another environment may have the same one
            decoder = LiveDecoder(decoder.target.fork(), decoder.draft.fork(), decoder.costs)
        super().__init__(decoder, requests, **options)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FeatureVector, dict[str, Any]]:
        """See `SpeculationEnv.reset`."""
        one_thread_if_forked()  # the environment may have been made before the fork
        return super().reset(seed=seed, options=options)


def _prompt_requests(
    pair: ModelPair, prompts: str, limit: int | None, max_new_tokens: int, sampling: SamplingSettings
) -> list[Request]:
    """Makes requests for the first turns of a source's prompts, each with its own seed after that of `sampling`."""
    encoded = [encode_chat(pair.tokenizer, prompt.turns[:1]) for prompt in load_prompts(prompts, limit)]
    for tokens in encoded:
        check_fits(len(tokens), pair.target.context_limit)
    seeded = [dataclasses.replace(sampling, seed=sampling.seed + index) for index in range(len(encoded))]
    return [pair.request(tokens, max_new_tokens, settings) for tokens, settings in zip(encoded, seeded, strict=True)]

"""The settings that come with a target, in its `generation_config.json`: requests follow them as `generate` does.

Some models come with a repetition penalty, for example. Temperature, top-k, top-p and limits are always the user's.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers  # its model classes take seconds to load, and few targets need them here
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specgym.env.models.target import TargetModel
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

# `generate` makes logits processors of these.
_PROCESSED = """
bad_words_ids begin_suppress_tokens encoder_no_repeat_ngram_size encoder_repetition_penalty
exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id min_length min_new_tokens no_repeat_ngram_size
remove_invalid_values renormalize_logits repetition_penalty sequence_bias suppress_tokens watermarking_config
"""
_SAMPLED = "epsilon_cutoff eta_cutoff min_p top_h typical_p"  # of these too, when sampling
# These change the text, and no request here follows them.
_LEFT_OUT = "constraints dola_layers force_words_ids guidance_scale max_time num_beams penalty_alpha stop_strings"
_NEUTRAL = dict.fromkeys(("encoder_repetition_penalty", "guidance_scale", "num_beams", "repetition_penalty"), 1) | (
    dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size", "penalty_alpha"), 0)
)
_OURS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)


def own_request(target: TargetModel, prompt: Sequence[int], max_new_tokens: int, sampling: SamplingSettings) -> Request:
    """Returns a request that follows the target's own settings, and warns of those that it cannot follow.

    Args:
        target: the model.
        prompt: token ids.
        max_new_tokens: most tokens to generate [tokens].
        sampling: how tokens are chosen.

    Raises:
        LimitError: the prompt is empty or `max_new_tokens` is not positive.
    """
    plain = Request(tuple(prompt), max_new_tokens, sampling)
    _warn_of(_set_fields(target.generation_config, _LEFT_OUT))
    names = _PROCESSED if sampling.greedy else f"{_PROCESSED} {_SAMPLED}"
    settings = _set_fields(target.generation_config, names)
    if not settings:
        return plain
    processors = _processors(target, plain, settings)
    if all(type(processor) in _OURS for processor in processors):
        return plain
    unprocessed = SamplingSettings(0.0 if sampling.greedy else 1.0, seed=sampling.seed)
    return Request(plain.prompt, max_new_tokens, unprocessed, processors=processors)


def warn_of_own_settings(target: TargetModel) -> None:
    """Warns of all settings of a target's own, for uses that follow none."""
    _warn_of(_set_fields(target.generation_config, f"{_PROCESSED} {_LEFT_OUT}"))


def _warn_of(settings: dict[str, Any]) -> None:
    if settings:
        names = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        warnings.warn(f"Not followed from the target's generation_config.json: {names}.", stacklevel=3)


def _set_fields(config: GenerationConfig, names: str) -> dict[str, Any]:
    """The fields of these names that ask for something."""
    values = {name: getattr(config, name, None) for name in names.split()}
    asking = {name: value for name, value in values.items() if value is not None and value is not False}
    return {name: value for name, value in asking.items() if value != _NEUTRAL.get(name)}


def _processors(target: TargetModel, request: Request, settings: dict[str, Any]) -> tuple[Any, ...]:
    """The logits processors that `generate` makes of these settings and of the request's sampling."""
    sampling = request.sampling
    config = GenerationConfig(
        **settings,
        eos_token_id=sorted(target.end_tokens) or None,
        pad_token_id=0,
        max_new_tokens=request.max_new_tokens,
        do_sample=not sampling.greedy,
    )
    if not sampling.greedy:
        config.update(temperature=float(sampling.temperature), top_k=sampling.top_k, top_p=float(sampling.top_p))
    made = LogitsProcessorList()

    def keep(model: Any, input_ids: Any, logits_processor: LogitsProcessorList, **others: Any) -> torch.Tensor:
        made.extend(logits_processor)
        return torch.empty(0)

    prompt = torch.tensor([request.prompt], device=target.device)
    _empty_model(target.vocabulary, target.device).generate(
        prompt, attention_mask=torch.ones_like(prompt), generation_config=config, custom_generate=keep
    )
    return tuple(made)


@functools.cache
def _empty_model(vocabulary: int, device: torch.device) -> LlamaForCausalLM:
    """A model for which `generate` makes logits processors. It computes nothing."""
    shape = {"hidden_size": 2, "intermediate_size": 2, "num_attention_heads": 1, "num_hidden_layers": 1}
    with torch.device("meta"):  # draws no random numbers
        config = transformers.LlamaConfig(vocab_size=vocabulary, max_position_embeddings=2**30, **shape)
        model = transformers.LlamaForCausalLM(config)
    return model.to_empty(device=device)

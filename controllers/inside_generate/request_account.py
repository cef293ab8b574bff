"""The account of a request: every field and argument is used, known to change no token, or refused by name.

The lists name what is known. So a field or an argument that a later version of transformers adds is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from numbers import Number
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from specgym.env.common.errors import ParameterError

# `generate` has turned these into logits processors, stopping criteria or tokens of the prompt.
_PREPARED = """
bad_words_ids begin_suppress_tokens bos_token_id decoder_start_token_id encoder_no_repeat_ngram_size
encoder_repetition_penalty eos_token_id epsilon_cutoff eta_cutoff exponential_decay_length_penalty forced_bos_token_id
forced_eos_token_id guidance_scale max_length max_new_tokens max_time min_length min_new_tokens min_p
no_repeat_ngram_size remove_invalid_values renormalize_logits repetition_penalty sequence_bias stop_strings
suppress_tokens temperature token_healing top_h top_k top_p typical_p watermarking_config
"""
# The decoding function reads these.
_READ = "do_sample num_return_sequences output_logits output_scores pad_token_id return_dict_in_generate use_cache"
# These change speed or memory only, or plain decoding ignores them too.
_NEUTRAL = """
assistant_confidence_threshold assistant_lookbehind compile_config disable_compile early_stopping length_penalty
low_memory max_cache_len max_matching_ngram_size num_assistant_tokens num_assistant_tokens_schedule prefill_chunk_size
target_lookbehind transformers_version
"""
_KNOWN_FIELDS = frozenset(f"{_PREPARED} {_READ} {_NEUTRAL}".split())
_SAME_CACHES = ("dynamic", "offloaded", "static", "offloaded_static", "hybrid", "sliding_window")
_STATES = ("output_attentions", "output_hidden_states")

_KNOWN_ARGUMENTS = frozenset(
    {
        *("attention_mask", "past_key_values", "position_ids"),  # used
        *("labels", "logits_to_keep", "use_cache"),  # change no token; `generate` never forwards labels
        *_STATES,  # also fields, which are checked
    }
)
_TYPES = frozenset({"token_type_ids", "mm_token_type_ids"})
_MEANINGS = {
    "inputs_embeds": "embeddings in place of tokens",
    "mm_encoder_outputs": "images or videos",
    "pixel_values": "images",
    "token_type_ids": "types of tokens",
    "synced_gpus": "one model on several devices",
    "assistant_tokenizer": "an assistant with another vocabulary",
}
_HOOKS = ("prepare_inputs_for_generation", "_update_model_kwargs_for_generation", "_prefill", "_sample")
_INSTEAD = "Leave it out, or use plain generate."


def check_request(model: PreTrainedModel, config: GenerationConfig, arguments: Mapping[str, Any], texts: int) -> None:
    """Refuses whatever in a request would change the text and is not supported.

    Args:
        model: the target.
        config: the generation configuration.
        arguments: all that `generate` hands over beside its own preparations.
        texts: number of texts.

    Raises:
        ParameterError: fields, arguments or methods, by name.
    """
    _check_fields(config)
    _check_arguments(model, arguments)
    _check_methods(model)
    _check_hooks(model, texts)


def check_positions(position_ids: torch.Tensor | None, visible: torch.Tensor) -> None:
    """Refuses positions other than those that plain text has.

    Args:
        position_ids: `int64[texts, tokens]`, or with further leading dimensions; None for the usual ones.
        visible: which tokens are not padding, `bool[texts, tokens]`.

    Raises:
        ParameterError: a visible token has another position.
    """
    if position_ids is None:
        return
    usual = visible.long().cumsum(-1) - 1
    given = position_ids.to(usual.device)
    if given.shape[-1] != usual.shape[-1] or not bool(((given == usual) | ~visible).all()):
        raise ParameterError(f"Not supported with speculation: position_ids that do not count tokens. {_INSTEAD}")


def _check_fields(config: GenerationConfig) -> None:
    """Refuses fields that are not known here and not at their defaults.

    Fields that transformers itself does not know, as some models' files have, are ignored as in plain `generate`.
    """
    defaults = vars(GenerationConfig()) | getattr(GenerationConfig, "_get_default_generation_params", dict)()
    known = _KNOWN_FIELDS
    if config.cache_implementation in _SAME_CACHES:
        known |= {"cache_implementation", "cache_config"}
    if not config.return_dict_in_generate:
        known |= set(_STATES)  # `generate` returns them in a dictionary only
    fields = {name: value for name, value in vars(config).items() if name in defaults and not name.startswith("_")}
    _refuse(
        f"{name}={value!r}"
        for name, value in fields.items()
        if name not in known and not _is_default(value, defaults[name])
    )


def _check_arguments(model: PreTrainedModel, arguments: Mapping[str, Any]) -> None:
    """Refuses arguments for the model or the decoding loop that are not known here and hold something."""
    # To a model of text and images, tokens of type 0 are text. Other models add an embedding for type 0 too.
    reads_images = model.config.get_text_config(decoder=True) is not model.config
    types = {name: arguments[name] for name in _TYPES & arguments.keys() if torch.is_tensor(arguments[name])}
    text_only = {name for name, value in types.items() if reads_images and not bool(value.any())}
    _refuse(
        f"{name} ({_MEANINGS[name]})" if name in _MEANINGS else name
        for name, value in arguments.items()
        if name not in _KNOWN_ARGUMENTS | text_only and not (value is None or value is False or _is_empty(value))
    )


def _check_methods(model: PreTrainedModel) -> None:
    """Refuses a model whose inputs or decoding loop come from functions outside of transformers.

    Prompt tuning replaces them to put trained vectors before the text.
    """
    for name in _HOOKS:
        method = getattr(model, name, None)
        function = getattr(method, "__func__", method)
        origin = getattr(function, "__globals__", {}).get("__name__", type(function).__module__)
        if function is not None and not origin.startswith("transformers."):
            raise ParameterError(
                f"Not supported with speculation: {name} comes from {origin}, for example from prompt tuning. "
                "It may change what the model reads. Use plain generate."
            )


def _check_hooks(model: PreTrainedModel, texts: int) -> None:
    """Refuses adapters that hooks tell which rows or which texts of a forward they are for."""
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    given = {
        name
        for hook in hooks
        if isinstance(hook, functools.partial)
        for name, value in hook.keywords.items()
        if value is not None
    }
    _refuse(sorted(given & ({"alora_offsets", "adapter_names"} if texts > 1 else {"alora_offsets"})))


def _is_default(value: Any, default: Any) -> bool:
    return value is None or value is False or (isinstance(value, Number | str) and value in (default or 0, default))


def _is_empty(value: Any) -> bool:
    """Whether an argument holds nothing, such as the images of a request without images."""
    return isinstance(value, Mapping) and all(entry is None for entry in value.values())


def _refuse(names: Iterable[str]) -> None:
    refused = ", ".join(names)
    if refused:
        raise ParameterError(f"Not supported with speculation: {refused}. {_INSTEAD}")

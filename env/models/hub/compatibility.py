"""Which models can work here, told from their configuration before anything runs.

A tree holds several branches of one text at once, so a token must be able to see its own branch and nothing else.
Attention that reads the whole cache through a mask can do that. Attention that counts distances along the cache, and
layers that fold the past into a state, cannot.
"""

from __future__ import annotations

from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from specgym.env.common.errors import PairError

WHAT_WORKS = "Use a causal LM with full attention, such as Llama, Qwen2/3 or SmolLM2."

# transformers marks most of its recurrent models itself; these it does not mark.
RECURRENT_TYPES = frozenset({"lfm2", "lfm2_moe", "lfm3", "minimax", "mamba", "mamba2", "rwkv", "recurrent_gemma"})
RECURRENT_LAYERS = frozenset({"linear_attention", "conv", "recurrent", "mamba", "hybrid", "hybrid_sliding"})
WINDOW_LAYERS = frozenset(
    {"sliding_attention", "chunked_attention", "window_attention", "reference_sliding_attention", "local"}
)
FULL_LAYERS = frozenset({"full_attention", "attention", "global"})
ALIBI_TYPES = frozenset({"bloom", "mpt"})
# No key-value cache, no mask or positions of one's own choosing, or units that are not tokens.
OTHER_TYPES = frozenset({"blt", "cpmant", "doge", "git", "openai-gpt", "roformer", "trocr", "xlm", "xlnet"})
# Their configuration says `is_decoder=False` although they only ever read to the left.
CAUSAL_ANYWAY = frozenset({"gpt_neox", "gpt_neox_japanese"})
CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length")


def check_target(config: PretrainedConfig) -> None:
    """Refuses a target whose attention cannot hold the branches of a tree.

    Args:
        config: the target's configuration; of a model for text and images, the text part is looked at.

    Raises:
        PairError: an encoder, an encoder-decoder, recurrent layers, or attention with ALiBi, a sliding window, chunks
            or a selection of the past.
    """
    _check(config, "target")


def check_draft(config: PretrainedConfig) -> None:
    """Refuses a draft whose attention cannot hold the branches of a tree; the same refusals as `check_target`.

    Args:
        config: the draft's configuration.

    Raises:
        PairError: as in `check_target`.
    """
    _check(config, "draft")


def check_vocabulary(target_tokenizer: PreTrainedTokenizerBase, draft_tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses two tokenizers that do not give every token the same id.

    The whole maps are compared, added tokens included: a token that only one of the two knows is a difference, because
    the draft would read or propose an id that means something else, or nothing, to the other. Rows of padding that a
    model has beyond its tokenizer (Qwen2) do not show here and do no harm.

    Args:
        target_tokenizer: the target's.
        draft_tokenizer: the draft's.

    Raises:
        PairError: some tokens differ; the message counts them and shows one.
    """
    target, draft = target_tokenizer.get_vocab(), draft_tokenizer.get_vocab()
    different = [token for token in target.keys() | draft.keys() if target.get(token) != draft.get(token)]
    if not different:
        return
    # The lowest id makes the message the same on every run; sets have no order of their own.
    token = min(different, key=lambda each: (min(_ids(each, target, draft)), each))
    raise PairError(
        f"Target and draft use different vocabularies: {len(different):,} tokens differ. For example {token!r} has "
        f"{_id_text(target.get(token))} in the target and {_id_text(draft.get(token))} in the draft. "
        "Expected: the same id for every token. Use a draft that was trained with the target's tokenizer."
    )


def context_limit(config: PretrainedConfig) -> int:
    """Tells how many positions a model knows [tokens].

    A longrope model changes the rotation of every position once its text outgrows the original length. A tree reaches
    deeper than the text that is kept of it, so it would change over too early: such a model counts up to the original
    length only.

    Args:
        config: the model's configuration.

    Raises:
        PairError: the configuration names no context length.
    """
    text = config.get_text_config(decoder=True)
    lengths = [getattr(text, field, None) for field in CONTEXT_FIELDS]
    limit = next((length for length in lengths if isinstance(length, int) and length > 0), None)
    if limit is None:
        raise PairError(
            f"The configuration of model type {text.model_type!r} names no context length. "
            f"Expected: a positive {' or '.join(CONTEXT_FIELDS)} in its config.json."
        )
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return min(limit, rope.get("original_max_position_embeddings") or limit)
    return limit


def _check(config: PretrainedConfig, role: str) -> None:
    reason = _refusal(config)
    if reason is not None:
        raise PairError(f"The {role}'s model type {config.model_type!r} cannot work here: {reason}. {WHAT_WORKS}")


def _refusal(config: PretrainedConfig) -> str | None:
    """Why the model cannot hold a tree; None if it can."""
    text = config.get_text_config(decoder=True)
    layers = _layer_types(text)
    reasons = {
        "it is an encoder-decoder": any(getattr(part, "is_encoder_decoder", False) for part in (config, text)),
        "it is not set up as a decoder (is_decoder is false)": (
            getattr(text, "is_decoder", True) is False and text.model_type not in CAUSAL_ANYWAY
        ),
        "its layers carry a recurrent state, which holds one branch only": (
            bool(layers & RECURRENT_LAYERS) or _is_recurrent(text)
        ),
        "its ALiBi attention counts distances along the cache, not along a branch": (
            text.model_type in ALIBI_TYPES or getattr(text, "alibi", False)
        ),
        "its sliding-window or chunked attention sees a part of the cache only": (
            bool(layers & WINDOW_LAYERS) if layers else _has_window(text)
        ),
        "not all its layers have full attention": bool(layers - FULL_LAYERS),
        "its forward pass does not take the mask and the cache that a tree needs": text.model_type in OTHER_TYPES,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def _layer_types(text: PretrainedConfig) -> frozenset[str]:
    # GPT-Neo says it in a field of its own.
    kinds = getattr(text, "layer_types", None) or getattr(text, "attention_layers", None) or ()
    return frozenset(kinds)


def _is_recurrent(text: PretrainedConfig) -> bool:
    try:
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(text)]
    except KeyError:  # a configuration class of the user's own
        model_class = None
    return text.model_type in RECURRENT_TYPES or bool(getattr(model_class, "_is_stateful", False))


def _has_window(text: PretrainedConfig) -> bool:
    """Whether a window cuts something off; one as wide as the context never does."""
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    sizes = [size for size in (window, getattr(text, "attention_chunk_size", None)) if size]
    return any(size < context_limit(text) for size in sizes)


def _ids(token: str, *maps: dict[str, int]) -> list[int]:
    return [known[token] for known in maps if token in known]


def _id_text(token_id: int | None) -> str:
    return "no id" if token_id is None else f"id {token_id}"

"""Decides from a model's configuration, before anything runs, whether the model can work here.

A tree holds several branches of one text at once, and a token must see its own branch only. Attention that reads the
whole cache through a mask can do that. Attention that counts distances along the cache cannot, and neither can layers
that fold the past into a state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import transformers

from specgym.env.common.errors import PairError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

WHAT_WORKS = "Use a causal LM with full attention, such as Llama, Qwen2/3 or SmolLM2."

# transformers marks most of its recurrent models itself; these it does not mark.
RECURRENT_TYPES = frozenset({"lfm2", "lfm2_moe", "lfm3", "minimax", "mamba", "mamba2", "rwkv", "recurrent_gemma"})
RECURRENT_LAYERS = frozenset({"linear_attention", "conv", "recurrent", "mamba", "hybrid", "hybrid_sliding"})
WINDOW_LAYERS = frozenset(
    {"sliding_attention", "chunked_attention", "window_attention", "reference_sliding_attention", "local"}
)
FULL_LAYERS = frozenset({"full_attention", "attention", "global"})
ALIBI_TYPES = frozenset({"bloom", "mpt"})
# These have no key-value cache, take no mask or positions, or read units that are not tokens.
OTHER_TYPES = frozenset({"blt", "cpmant", "doge", "git", "openai-gpt", "roformer", "trocr", "xlm", "xlnet"})
# Their configuration says `is_decoder=False` although they only look to the left.
CAUSAL_ANYWAY = frozenset({"gpt_neox", "gpt_neox_japanese"})
CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length")


def check_target(config: PretrainedConfig, role: str = "target") -> None:
    """Refuses a target whose attention cannot hold the branches of a tree.

    Args:
        config: the target's configuration. For a model of text and images, the text part counts.
        role: the model's part in the pair, for the message.

    Raises:
        PairError: an encoder, an encoder-decoder, recurrent layers, or attention with ALiBi, a sliding window, chunks
            or a selection of the past.
    """
    text = config.get_text_config(decoder=True)
    # GPT-Neo has a field of its own.
    layers = frozenset(getattr(text, "layer_types", None) or getattr(text, "attention_layers", None) or ())
    model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None)  # None for a user's own configuration
    recurrent = text.model_type in RECURRENT_TYPES or getattr(model_class, "_is_stateful", False)
    reasons = {
        "it is an encoder-decoder": any(getattr(part, "is_encoder_decoder", False) for part in (config, text)),
        "it is not set up as a decoder (is_decoder is false)": (
            getattr(text, "is_decoder", True) is False and text.model_type not in CAUSAL_ANYWAY
        ),
        "its layers carry a recurrent state, which holds one branch only": layers & RECURRENT_LAYERS or recurrent,
        "its ALiBi attention counts distances along the cache, not along a branch": (
            text.model_type in ALIBI_TYPES or getattr(text, "alibi", False)
        ),
        "its sliding-window or chunked attention sees a part of the cache only": (
            layers & WINDOW_LAYERS if layers else _has_window(text)
        ),
        "not all its layers have full attention": layers - FULL_LAYERS,
        "its forward pass does not take the mask and the cache that a tree needs": text.model_type in OTHER_TYPES,
    }
    for reason, applies in reasons.items():
        if applies:
            raise PairError(f"The {role}'s model type {config.model_type!r} cannot work here: {reason}. {WHAT_WORKS}")


def check_draft(config: PretrainedConfig) -> None:
    """Refuses a draft whose attention cannot hold the branches of a tree, as `check_target` does."""
    check_target(config, "draft")


def check_vocabulary(target_tokenizer: PreTrainedTokenizerBase, draft_tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses two tokenizers that do not give every token the same id.

    The whole maps are compared, added tokens included. A token that only one of them has is a difference: its id means
    something else, or nothing, to the other model. Padding rows that a model has beyond its tokenizer (Qwen2) do not
    matter.

    Args:
        target_tokenizer: the target's tokenizer.
        draft_tokenizer: the draft's tokenizer.

    Raises:
        PairError: some tokens differ; the message gives their number and an example.
    """
    maps = target, draft = target_tokenizer.get_vocab(), draft_tokenizer.get_vocab()
    different = [token for token in target.keys() | draft.keys() if target.get(token) != draft.get(token)]
    if not different:
        return
    # Sets have no order; taking the lowest id makes the message the same on every run.
    token = min(different, key=lambda text: (min(ids[text] for ids in maps if text in ids), text))
    places = [f"id {ids[token]}" if token in ids else "no id" for ids in maps]
    raise PairError(
        f"Target and draft use different vocabularies: {len(different):,} tokens differ. For example {token!r} has "
        f"{places[0]} in the target and {places[1]} in the draft. "
        "Expected: the same id for every token. Use a draft that was trained with the target's tokenizer."
    )


def context_limit(config: PretrainedConfig) -> int:
    """Returns how many positions a model has [tokens].

    A longrope model changes the rotation of all positions once its text is longer than the original length. A tree is
    deeper than the text that is kept of it, so the change would come too early. Such a model counts up to its original
    length only.

    Args:
        config: the model's configuration.

    Raises:
        PairError: the configuration has no context length.
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


def _has_window(text: PretrainedConfig) -> bool:
    """Whether a window hides something; a window as wide as the context does not."""
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    sizes = [size for size in (window, getattr(text, "attention_chunk_size", None)) if size]
    return any(size < context_limit(text) for size in sizes)

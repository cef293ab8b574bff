"""Decides from a model's configuration, before anything runs, whether the model can work here.

A tree holds several branches of one text at once, and a token must see its own branch only. Attention that reads the
whole cache through a mask can do that, windows included. Attention that counts distances along the cache cannot, and
neither can layers that fold the past into a state.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import transformers

from specgym.env.common.errors import PairError
from specgym.env.models.hub.context import has_window

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WHAT_WORKS = "Use a causal LM with a key-value cache, such as Llama, Qwen2/3, Gemma 2/3 or SmolLM2."

# transformers marks most of its recurrent models itself; these it does not mark.
RECURRENT_TYPES = frozenset({"lfm2", "lfm2_moe", "lfm3", "minimax", "mamba", "mamba2", "rwkv", "recurrent_gemma"})
RECURRENT_LAYERS = frozenset({"linear_attention", "conv", "recurrent", "mamba", "hybrid", "hybrid_sliding"})
# Windows and chunks are masks over the whole cache. "local" is GPT-Neo's window.
KNOWN_LAYERS = frozenset({"full_attention", "attention", "global", "sliding_attention", "chunked_attention", "local"})
ALIBI_TYPES = frozenset({"bloom", "mpt"})
# Their configuration says `is_decoder=False` although they only look to the left.
CAUSAL_ANYWAY = frozenset({"gpt_neox", "gpt_neox_japanese"})
OTHER_REASONS = {
    "blt": "it reads bytes in patches, not tokens",
    "doge": "its attention adds a mask of its own to a causal one",
    "git": "its forward does not take the cache that a tree needs",
    "moshi": "its window is in its cache, not in its masks",
    "openai-gpt": "it has no key-value cache",
    "roformer": "its positions follow the cache, not a branch",
    "xlm": "its forward does not take the mask that a tree needs",
    "xlnet": "its forward does not take the mask that a tree needs",
}

# Those that docs/architectures.md says to work. A model of another type is tried out before it is used.
_TESTED_TYPES = """
    afmoe apertus arcee aria_text axk1 beam bert bert-generation big_bird biogpt bitnet camembert codegen cohere
    cohere2 cohere2_moe cohere_compass_text ctrl cwm data2vec-text dbrx deepseek_v2 deepseek_v3 diffllama dots1
    electra emu3 ernie ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon flex_olmo flint fuyu gemma gemma2 gemma3
    gemma3_text gemma3n_text gemma4 gemma4_text gemma4_unified gemma4_unified_text glm glm4 glm4_moe glm4_moe_lite
    got_ocr2 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granite_swa granitemoe
    granitemoe_swa granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax internlm3
    iquestcoder jais2 jetmoe kolibri1 laguna llama llama4 llama4_text longcat_flash megatron-bert mellum
    mimo_v2_flash minicpm3 minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral mllama
    modernbert-decoder nanochat nemotron olmo olmo2 olmo3 olmoe opt persimmon phi phi3 phi4_multimodal phimoe qwen2
    qwen2_moe qwen3 qwen3_moe rembert roberta roberta-prelayernorm roc_bert seed_oss smollm3 solar_open stablelm
    starcoder2 vaultgemma xglm xlm-roberta xlm-roberta-xl xmod youtu
"""
TESTED_TYPES = frozenset(_TESTED_TYPES.split())


def check_target(config: PretrainedConfig, role: str = "target") -> None:
    """Refuses a target whose attention cannot hold the branches of a tree.

    Args:
        config: the target's configuration. For a model of text and images, the text part counts.
        role: the model's part in the pair, for the message.

    Raises:
        PairError: an encoder, an encoder-decoder, recurrent layers, attention with ALiBi or a selection of the past,
            or a forward that takes no positions.
    """
    text = config.get_text_config(decoder=True)
    # GPT-Neo has a field of its own.
    layers = frozenset(getattr(text, "layer_types", None) or getattr(text, "attention_layers", None) or ())
    model_classes = [kind for kind in map(_class_for, {type(config), type(text)}) if kind is not None]
    recurrent = text.model_type in RECURRENT_TYPES or any(
        getattr(kind, "_is_stateful", False) for kind in model_classes
    )
    other = OTHER_REASONS.get(text.model_type, "")
    reasons = {
        "it is an encoder-decoder": any(getattr(part, "is_encoder_decoder", False) for part in (config, text)),
        "it is not set up as a decoder (is_decoder is false)": (
            getattr(text, "is_decoder", True) is False and text.model_type not in CAUSAL_ANYWAY
        ),
        "its layers carry a recurrent state, which holds one branch only": layers & RECURRENT_LAYERS or recurrent,
        "its ALiBi attention counts distances along the cache, not along a branch": (
            text.model_type in ALIBI_TYPES or getattr(text, "alibi", False)
        ),
        f"its layers are of kinds unknown here ({', '.join(sorted(layers - KNOWN_LAYERS))})": layers - KNOWN_LAYERS,
        other: other and (text.model_type != "moshi" or has_window(text)),
        "its forward takes no cache and no position_ids, as a tree needs": any(
            not {"past_key_values", "position_ids"} <= inspect.signature(kind.forward).parameters.keys()
            for kind in model_classes
        ),
    }
    for reason, applies in reasons.items():
        if applies:
            raise PairError(f"The {role}'s model type {config.model_type!r} cannot work here: {reason}. {WHAT_WORKS}")


def is_tested(model: PreTrainedModel) -> bool:
    """Whether the tests show that a model's class reads trees right, so that it need not be tried."""
    return model.config.model_type in TESTED_TYPES and type(model) is _class_for(type(model.config))


def _class_for(kind: type[PretrainedConfig]) -> type[PreTrainedModel] | None:
    """The causal language model that transformers makes of a configuration; None for a user's own configuration."""
    found: type[PreTrainedModel] | None = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(kind, None)
    return found


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

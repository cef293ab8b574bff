"""A tiny random model of every causal language model that transformers has, and whether speculation works with it.

`make architectures` tries all of them and writes docs/architectures.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

import specgym
from specgym.env.common.errors import PairError
from specgym.env.models.branches import branch_errors
from specgym.env.models.hub.compatibility import WHAT_WORKS, check_target
from specgym.env.models.hub.context import has_window
from specgym.env.models.target import CachedModel
from tests.support.tiny_models import noisy_copy

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
WORKS, WORKS_IN_WINDOWS = "works", "works, windows included"
WINDOW = 8
PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14] * 2
LENGTH = 32
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "d_model": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "init_std": 0.2,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    "use_sliding_window": True,
    "max_window_layers": 2,
    "is_decoder": True,
    "is_encoder_decoder": False,
    "tie_word_embeddings": False,
    "rotary_dim": 8,
    "image_size": 28,
    "patch_size": 14,
    "num_layers": 2,
    "depth": 2,
    "num_heads": 4,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "qk_head_dim": 16,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 4,
    "vocab_size_per_layer_input": 64,
    "hidden_size_per_layer_input": 8,
}


SHARED = {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
EXTRAS: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10_000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {"n_shared_experts": 1, "norm_topk_prob": True},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3n_text": SHARED | {"laurel_rank": 8, "activation_sparsity_pattern": [0.0] * 4},
    "gemma4_text": SHARED,
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
    "longcat_flash": {"expert_ffn_hidden_size": 16, "zero_expert_num": 2, "ffn_hidden_size": 48, "head_dim": 8},
    "roc_bert": {"shape_vocab_size": 64, "pronunciation_vocab_size": 64},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}
# What a configuration needs even with its usual sizes.
NEEDED: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
}


def tiny_config(kind: type[PretrainedConfig]) -> PretrainedConfig:
    """Returns a tiny configuration, parts for images or sound included, with windows that are shorter than the text."""
    usual = kind(**NEEDED.get(kind.model_type, {}))
    names = set(usual.to_dict()) | set(kind.attribute_map)
    settings = {name: value for name, value in SIZES.items() if name in names}
    if "qk_rope_head_dim" in names:  # multi-head latent attention has head sizes of its own, and no shared heads
        settings.pop("head_dim", None)
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    parts = {
        name: part for name in kind.sub_configs if isinstance(part := getattr(usual, name, None), PretrainedConfig)
    }
    settings |= {name: tiny_config(type(part)) for name, part in parts.items()}
    return kind(**settings | EXTRAS.get(kind.model_type, {}))


def tiny_model(kind: type[PretrainedConfig]) -> PreTrainedModel:
    """Returns a tiny random model in float32. Raises `PairError` if its configuration is refused."""
    try:
        config = tiny_config(kind)
    except Exception:  # many of the refused ones have sizes that must fit each other
        check_target(kind(**NEEDED.get(kind.model_type, {})))
        raise
    check_target(config)
    torch.manual_seed(0)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[kind]
    try:
        model = model_class(config)
    except AttributeError:  # a model of text alone, whose mapping names the configuration of text and images too
        model = model_class(config.get_text_config(decoder=True))
    model = model.float().eval()
    model.generation_config.eos_token_id = None
    return model


def verdict(kind: type[PretrainedConfig]) -> str:
    """Returns whether an architecture works, is refused (and why), could not be made here, or differs."""
    try:
        model = tiny_model(kind)
    except PairError as error:
        return "refused: " + str(error).split("cannot work here: ")[1].removesuffix(f". {WHAT_WORKS}")
    except ImportError as error:
        return f"not tried: {str(error).strip().split(' but ')[0]}"
    if branch_errors(CachedModel(model), prefix=20).max() > 1e-4:
        return "DIFFERS: on branches"
    settings = {"max_new_tokens": LENGTH, "do_sample": False, "pad_token_id": 0, "use_cache": True}
    expected = model.generate(torch.tensor([PROMPT]), **settings)
    for name, draft in {"lookup": "lookup", "a noisy copy": noisy_copy(model, 0.02)}.items():
        rounds: list[Any] = []
        hand = {"custom_generate": specgym.generate, "draft": draft, "controller": "fixed_tree"}
        got = model.generate(torch.tensor([PROMPT]), **settings, **hand, on_tokens=rounds.append)
        if not torch.equal(got, expected):
            return f"DIFFERS: with {name}"
        if name != "lookup" and len(rounds) >= LENGTH:
            return "DIFFERS: nothing is accepted"
    return WORKS_IN_WINDOWS if has_window(model.config) else WORKS


def kinds() -> dict[str, type[PretrainedConfig]]:
    """Returns the configuration classes of all causal language models by their model types."""
    return {kind.model_type: kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING}


def page(verdicts: dict[str, str]) -> str:
    """Returns the page of these verdicts by model type."""
    works, refused = (sum(text.startswith(word) for text in verdicts.values()) for word in (WORKS, "refused"))
    rows = [
        f"| {name} | {MODEL_FOR_CAUSAL_LM_MAPPING[kinds()[name]].__name__} | {text} |"
        for name, text in verdicts.items()
    ]
    return "\n".join(
        [
            "# Architectures",
            "",
            f"transformers {transformers.__version__} has {len(verdicts)} types of causal language models.",
            f"{works} of them work as targets and as causal drafts; {refused} are refused by name.",
            "",
            '"Works" means that a tiny random model of the type in float32 writes the same tokens as `generate`.',
            "Prompt lookup and a noisy copy of the model are the drafts. Some tokens of the copy are accepted. Windows",
            "and chunks are shorter than the text. Logits on branches of a tree equal those of each branch alone.",
            "",
            "A model of any other type, or of a class of the user's own, is tried out on a small tree when it is first",
            "used. It is refused by name if it reads the tree wrongly.",
            "",
            "`make architectures` writes this page. A test compares some of its rows with every change.",
            "",
            "| model type | class | result |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def stated() -> dict[str, str]:
    """Returns the committed verdicts by model type."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {name: text for name, _, text in cells[2:]}


def main(chosen: Iterable[str] = ()) -> int:
    """Tries all architectures and writes the page, or prints chosen ones. Returns the exit status."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    verdicts = {}
    for name in chosen or sorted(kinds()):
        try:
            verdicts[name] = verdict(kinds()[name])
        except Exception as error:
            verdicts[name] = f"FAILS: {type(error).__name__} {str(error)[:100]}"
        print(f"{name}: {verdicts[name]}", flush=True)
    if not chosen:
        PAGE.write_text(page(verdicts), encoding="utf-8")
    return int(any(text.startswith(("DIFFERS", "FAILS")) for text in verdicts.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A tiny target, drafts for it and their tokenizer as folders, such as `load_pair` and the scripts take them.

The tokenizer knows single characters of ASCII, so that every text of them survives encoding and decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from specgym.env.drafts.network import save_network
from tests.support.tiny_models import noisy_copy, tiny_llama, tiny_network

SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>", "<unk>")
END = SPECIAL.index("<|im_end|>")
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
VOCABULARY = len(SPECIAL) + len(CHARACTERS)
CONTEXT = 384
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinyFolders:
    """Where the models are."""

    target: Path
    """a chat model"""
    draft: Path
    """a noisy copy of it"""
    stranger: Path
    """a model of another vocabulary"""
    feature_draft: Path
    """an untrained feature draft for the target, a file"""


def tiny_tokenizer(characters: str = CHARACTERS) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters with a chat template; what it does not know becomes ``<unk>``."""
    letters = [
        text for character in characters for text, _ in pre_tokenizers.ByteLevel(False).pre_tokenize_str(character)
    ]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
    )


def tiny_chat_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The target: a tiny Llama with the tokenizer's vocabulary and end token.

    Its attention is weakened, so that it repeats itself and prompt lookup is sometimes right; its head is
    strengthened, so that sampling does not choose among all tokens alike.
    """
    model = tiny_llama(
        seed,
        dtype,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=SPECIAL.index("<pad>"),
    )
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= 0.3
        model.lm_head.weight *= 3
    return model


def save_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """Writes model and tokenizer to a folder, which is returned."""
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def save_tiny_folders(folder: Path) -> TinyFolders:
    """Writes the target, its drafts and the stranger to folders in `folder`."""
    target = tiny_chat_model()
    network = tiny_network(vocabulary=VOCABULARY)
    save_network(network, folder / "feature" / "draft.safetensors", {})
    return TinyFolders(
        save_model(folder / "target", target),
        save_model(folder / "draft", noisy_copy(target)),
        save_model(folder / "stranger", target, tiny_tokenizer(CHARACTERS[::-1])),
        folder / "feature" / "draft.safetensors",
    )

"""Loading a target and its draft, checked to be a pair before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from env.drafts import CausalDraft, Draft, FeatureDraft, LookupDraft
from env.drafts.network import load_network
from env.errors import LimitError, PairError, ParameterError
from env.live import LiveDecoder
from env.models.compatibility import check_draft, check_target, check_vocabulary
from env.models.loading import load_causal_model, load_config, load_tokenizer
from env.models.store import describe_weights, locate_model
from env.models.target import CachedModel, TargetModel

__all__ = [
    "DEFAULT_TARGET",
    "DTYPES",
    "PAIRS",
    "ModelPair",
    "check_text",
    "encode_chat",
    "load_pair",
    "make_draft",
]

DEFAULT_TARGET = "smollm2-135m-instruct"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
LOOKUP = "lookup"

_WEIGHTS = Path(__file__).parent / "drafts" / "weights"
PAIRS = {
    DEFAULT_TARGET: _WEIGHTS / DEFAULT_TARGET / "draft.safetensors",
    "HuggingFaceTB/SmolLM2-135M-Instruct": _WEIGHTS / DEFAULT_TARGET / "draft.safetensors",
}
"""the registered pairs: a target, by its name or hub id, and the draft shipped for it"""


@dataclass(frozen=True)
class ModelPair:
    """A target, its draft and their tokenizer."""

    target: TargetModel
    draft: Draft
    tokenizer: PreTrainedTokenizerBase
    target_name: str
    """what the user called the target"""
    draft_name: str
    """what the user called the draft, or the file shipped for it"""
    weights: str
    """where the target's weights came from"""

    def decoder(self) -> LiveDecoder:
        """A decoder of this pair. The two share their caches with every other decoder of the pair."""
        return LiveDecoder(self.target, self.draft)


def load_pair(
    target: str = DEFAULT_TARGET, draft: str | None = None, dtype: str = "bfloat16", device: str = "cpu"
) -> ModelPair:
    """Loads a target and a draft.

    Args:
        target: a registered name, a local folder or a hub id.
        draft: ``"lookup"``, a feature draft's safetensors file, or a causal language model as for `target`; None takes
            the draft shipped for the target, and prompt lookup where there is none.
        dtype: a name in `DTYPES`.
        device: ``"cpu"`` or a CUDA device.

    Raises:
        UnknownNameError: no such model.
        ModelFileError: weights, a configuration or a tokenizer that are missing, corrupt or cannot be fetched.
        PairError: models that cannot work, or not together.
        ParameterError: an unknown `dtype`, or a device that is not there.
    """
    if dtype not in DTYPES:
        raise ParameterError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}.")
    place = _device(device)
    transformers_logging.disable_progress_bar()
    folder = locate_model(target)
    check_target(load_config(folder))
    draft = draft or str(PAIRS.get(target, LOOKUP))
    tokenizer = load_tokenizer(folder)
    draft_folder = None if _is_lookup_or_file(draft) else _checked_draft(draft, tokenizer)
    model = TargetModel(load_causal_model(folder, DTYPES[dtype], place))
    if draft_folder is not None:
        guesser: Draft = CausalDraft(
            CachedModel(load_causal_model(draft_folder, DTYPES[dtype], place)), model.vocabulary
        )
    else:
        guesser = make_draft(draft, model)
    draft_name = Path(draft).name if draft.endswith(".safetensors") else draft
    return ModelPair(model, guesser, tokenizer, target, draft_name, describe_weights(folder))


def make_draft(draft: str, target: TargetModel) -> Draft:
    """A draft that is no model of its own: ``"lookup"`` or a feature draft's file.

    Raises:
        ModelFileError: the file is missing or corrupt.
        PairError: it is made for another target.
    """
    if draft == LOOKUP:
        return LookupDraft()
    network = load_network(Path(draft))
    largest = int(network.token_ids.max())
    if largest >= target.vocabulary:
        raise PairError(f"The feature draft proposes token {largest}; the target knows {target.vocabulary} tokens.")
    return FeatureDraft(network, target.model.get_input_embeddings(), target.context_limit)


def encode_chat(tokenizer: PreTrainedTokenizerBase, turns: Sequence[str]) -> tuple[int, ...]:
    """Token ids of a conversation whose last turn waits for an answer; user and assistant take turns.

    Tokenizers without a chat template get the turns as plain text.

    Raises:
        LimitError: a user's turn is empty.
    """
    for turn in turns[::2]:  # an answer may well be empty
        check_text(turn)
    if not tokenizer.chat_template:
        return tuple(tokenizer.encode("\n".join(turns)))
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)]
    return tuple(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def check_text(text: str) -> None:
    """Refuses a prompt without text.

    Raises:
        LimitError: there is nothing but white space.
    """
    if not text.strip():
        raise LimitError(f"The prompt is empty: expected some text to answer; got {text!r}.")


def _is_lookup_or_file(draft: str) -> bool:
    return draft == LOOKUP or draft.endswith(".safetensors")


def _checked_draft(draft: str, tokenizer: PreTrainedTokenizerBase) -> Path:
    """The folder of a causal draft model that fits the target's tokenizer."""
    folder = locate_model(draft)
    check_draft(load_config(folder))
    check_vocabulary(tokenizer, load_tokenizer(folder))
    return folder


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ParameterError(f"Device {name!r} is not available here ({error}). Use cpu.") from error
    return device

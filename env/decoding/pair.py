"""Loading a target and its draft, checked to be a pair before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from specgym.env.common.errors import LimitError, PairError, ParameterError
from specgym.env.decoding.learned_costs import LearnedCosts
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts import CausalDraft, Draft, FeatureDraft, LookupDraft
from specgym.env.drafts.calibrator import Calibrator, load_calibrator
from specgym.env.drafts.network import load_network
from specgym.env.models.fast.resident import return_freed
from specgym.env.models.hub.compatibility import check_draft, check_target, check_vocabulary
from specgym.env.models.hub.loading import load_causal_model, load_config, load_tokenizer
from specgym.env.models.hub.store import describe_weights, locate_model
from specgym.env.models.target import CachedModel, TargetModel

DEFAULT_TARGET = "smollm2-135m-instruct"
EIGHT_BITS = "int8"
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    EIGHT_BITS: torch.bfloat16,  # of everything but the weights of linear layers
}
LOOKUP = "lookup"

CALIBRATOR = "calibrator.json"

_WEIGHTS = Path(__file__).parents[1] / "drafts" / "weights" / DEFAULT_TARGET
_SHIPPED = {"feature": _WEIGHTS / "draft.safetensors", "standalone": _WEIGHTS / "standalone"}
PAIRS = {DEFAULT_TARGET: _SHIPPED, "HuggingFaceTB/SmolLM2-135M-Instruct": _SHIPPED}
"""the registered pairs: a target, by its name or hub id, and the drafts shipped for it, the best first"""


@dataclass(frozen=True)
class ModelPair:
    """A target, its draft and their tokenizer."""

    target: TargetModel
    draft: Draft
    tokenizer: PreTrainedTokenizerBase
    target_name: str
    """what the user called the target"""
    draft_name: str
    """what the user called the draft, or the name of the one shipped"""
    weights: str
    """where the target's weights came from"""

    def decoder(self) -> LiveDecoder:
        """A decoder of this pair, which learns what rounds cost. The two share their caches with every other decoder of
        the pair.
        """
        return LiveDecoder(self.target, self.draft, LearnedCosts())

    def with_draft(self, draft: str) -> ModelPair:
        """The same target with another draft, named as in `load_pair`; raises as that does."""
        draft = _resolve(draft, self.target_name)
        guesser = make_draft(draft, self.target, self.tokenizer)
        return dataclasses.replace(self, draft=guesser, draft_name=_short(draft))


def load_pair(
    target: str = DEFAULT_TARGET, draft: str | None = None, dtype: str = "bfloat16", device: str = "cpu"
) -> ModelPair:
    """Loads a target and a draft.

    Args:
        target: a registered name, a local folder or a hub id.
        draft: ``"lookup"``, a draft shipped for the target (``"feature"`` or ``"standalone"``), a feature draft's
            safetensors file, or a causal language model as for `target`; None takes the best one shipped for the
            target, and prompt lookup where there is none.
        dtype: a name in `DTYPES`.
        device: ``"cpu"`` or a CUDA device.

    Raises:
        UnknownNameError: no such model.
        ModelFileError: weights, a configuration or a tokenizer that are missing, corrupt or cannot be fetched.
        PairError: models that cannot work, or not together.
        ParameterError: an unknown `dtype`, one that this machine has not, or a device that is not there.
    """
    if dtype not in DTYPES:
        raise ParameterError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}.")
    place = find_device(device)
    folder = locate_model(target)
    check_target(load_config(folder))
    chosen = _resolve(draft, target)
    tokenizer = load_tokenizer(folder)
    if _is_model(chosen):
        _checked_draft(chosen, tokenizer)  # before the target's weights are read
    model = TargetModel(load_causal_model(folder, DTYPES[dtype], place), eight_bits=dtype == EIGHT_BITS)
    guesser = make_draft(chosen, model, tokenizer)
    return_freed()  # loading leaves much behind
    return ModelPair(model, guesser, tokenizer, target, _short(chosen), describe_weights(folder))


def make_draft(draft: str, target: TargetModel, tokenizer: PreTrainedTokenizerBase | None = None) -> Draft:
    """A draft for a target that is loaded, with the calibrator that lies beside its weights.

    Args:
        draft: ``"lookup"``, a feature draft's file, or, given `tokenizer`, a causal language model by folder or hub id.
        target: the target.
        tokenizer: the target's.

    Raises:
        ModelFileError: files are missing or corrupt.
        PairError: it is made for another target.
        UnknownNameError: no such model.
    """
    if draft == LOOKUP:
        return LookupDraft()
    if tokenizer is not None and _is_model(draft):
        folder = _checked_draft(draft, tokenizer)
        model = CachedModel(load_causal_model(folder, target.dtype, target.device), eight_bits=target.eight_bits)
        return CausalDraft(model, target.vocabulary, _calibrator(folder))
    network = load_network(Path(draft))
    unknown = network.token_ids[(network.token_ids < 0) | (network.token_ids >= target.vocabulary)]
    if len(unknown):
        first = int(unknown[0])
        raise PairError(f"The feature draft proposes token {first}; the target knows {target.vocabulary} tokens.")
    embedding = target.model.get_input_embeddings()
    calibrator = _calibrator(Path(draft).parent)
    return FeatureDraft(network, embedding, target.context_limit, calibrator, eight_bits=target.eight_bits)


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


def _resolve(draft: str | None, target: str) -> str:
    """A shipped draft's place in place of its name."""
    shipped = PAIRS.get(target, {})
    if draft is None:
        return str(next(iter(shipped.values()), LOOKUP))
    return str(shipped.get(draft, draft))


def _short(draft: str) -> str:
    """What to call a draft in results: a shipped one by its name."""
    names = {str(place): name for name, place in _SHIPPED.items()}
    return names.get(draft, Path(draft).name if draft.endswith(".safetensors") else draft)


def _is_model(draft: str) -> bool:
    return draft != LOOKUP and not draft.endswith(".safetensors")


def _calibrator(folder: Path) -> Calibrator | None:
    path = folder / CALIBRATOR
    return load_calibrator(path) if path.exists() else None


def _checked_draft(draft: str, tokenizer: PreTrainedTokenizerBase) -> Path:
    """The folder of a causal draft model that fits the target's tokenizer."""
    folder = locate_model(draft)
    check_draft(load_config(folder))
    check_vocabulary(tokenizer, load_tokenizer(folder))
    return folder


def find_device(name: str) -> torch.device:
    """The device of that name, if tensors can be put there. Raises `ParameterError` otherwise."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ParameterError(f"Device {name!r} is not available here ({error}). Use cpu.") from error
    return device

"""Loads a target and its draft, and checks before anything runs that they work together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from specgym.env.common.errors import LimitError, PairError, ParameterError
from specgym.env.decoding.learned_costs import LearnedCosts
from specgym.env.decoding.live import LiveDecoder
from specgym.env.decoding.own_settings import own_request
from specgym.env.drafts import CausalDraft, Draft, FeatureDraft, LookupDraft
from specgym.env.drafts.calibrator import Calibrator, load_calibrator
from specgym.env.drafts.network import load_network
from specgym.env.kernels.moving import trim_heap
from specgym.env.models.hub.chat import render_chat
from specgym.env.models.hub.compatibility import check_draft, check_target, check_vocabulary
from specgym.env.models.hub.loading import check_folder, load_tokenizer, open_model
from specgym.env.models.hub.store import describe_weights, locate_model
from specgym.env.models.target import CachedModel, TargetModel
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings

DEFAULT_TARGET = "smollm2-135m-instruct"
EIGHT_BITS = "int8"
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    EIGHT_BITS: torch.bfloat16,  # everything except the weights of linear layers
}
LOOKUP = "lookup"
CALIBRATOR = "calibrator.json"

_WEIGHTS = Path(__file__).parents[1] / "drafts" / "weights" / DEFAULT_TARGET
_SHIPPED = {"feature": _WEIGHTS / "draft.safetensors", "standalone": _WEIGHTS / "standalone"}
PAIRS = {DEFAULT_TARGET: _SHIPPED, "HuggingFaceTB/SmolLM2-135M-Instruct": _SHIPPED}
"""drafts shipped for each registered target, by the target's name or hub id, the best draft first"""


@dataclass(frozen=True)
class ModelPair:
    """A target, its draft and their tokenizer."""

    target: TargetModel
    draft: Draft
    tokenizer: PreTrainedTokenizerBase
    target_name: str
    """the user's name for the target"""
    draft_name: str
    """the user's name for the draft, or the name of the shipped one"""
    weights: str
    """where the target's weights were found"""

    def decoder(self) -> LiveDecoder:
        """A decoder of this pair that learns what rounds cost. It has caches of its own, so several may take turns."""
        return LiveDecoder(self.target.fork(), self.draft.fork(), LearnedCosts())

    def request(
        self, prompt: Sequence[int], max_new_tokens: int = 256, sampling: SamplingSettings | None = None
    ) -> Request:
        """A request that follows the target's own settings, such as a repetition penalty; see `own_request`."""
        return own_request(self.target, prompt, max_new_tokens, sampling or SamplingSettings())

    def with_draft(self, draft: str) -> ModelPair:
        """The same target with another draft, named as in `load_pair`. Raises the same errors."""
        draft = _resolve(draft, self.target_name)
        return replace(self, draft=make_draft(draft, self.target, self.tokenizer), draft_name=_short(draft))


def load_pair(
    target: str = DEFAULT_TARGET, draft: str | None = None, dtype: str = "bfloat16", device: str = "cpu"
) -> ModelPair:
    """Loads a target and a draft.

    Args:
        target: a registered name, a local folder or a hub id.
        draft: ``"lookup"``, a draft shipped for the target (``"feature"`` or ``"standalone"``), a feature draft's
            safetensors file, or a causal language model named like a target. None takes the best draft shipped for the
            target, or prompt lookup if there is none.
        dtype: a name in `DTYPES`.
        device: ``"cpu"`` or a CUDA device.

    Raises:
        UnknownNameError: no such model.
        ModelFileError: weights, a configuration or a tokenizer are missing, corrupt or cannot be fetched.
        PairError: a model cannot work here, or the two cannot work together.
        ParameterError: an unknown `dtype`, one that this machine does not support, or a device that it does not have.
    """
    if dtype not in DTYPES:
        raise ParameterError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}.")
    place = find_device(device)
    folder = locate_model(target)
    check_folder(folder, check_target)
    chosen = _resolve(draft, target)
    tokenizer = load_tokenizer(folder)
    if _is_model(chosen):
        _checked_draft(chosen, tokenizer)  # before the target's weights are read
    model = TargetModel(open_model(folder, DTYPES[dtype], place), eight_bits=dtype == EIGHT_BITS)
    loaded = make_draft(chosen, model, tokenizer)
    trim_heap()  # loading frees much memory
    return ModelPair(model, loaded, tokenizer, target, _short(chosen), describe_weights(folder))


def make_draft(draft: str, target: TargetModel, tokenizer: PreTrainedTokenizerBase | None = None) -> Draft:
    """Loads a draft for a loaded target, with the calibrator that lies beside its weights.

    Args:
        draft: ``"lookup"`` or a feature draft's file. With `tokenizer` also a causal language model, by folder or hub
            id.
        target: the target.
        tokenizer: the target's.

    Raises:
        ModelFileError: files are missing or corrupt.
        PairError: the draft was made for another target.
        UnknownNameError: no such model.
    """
    if draft == LOOKUP:
        return LookupDraft()
    if tokenizer is not None and _is_model(draft):
        folder = _checked_draft(draft, tokenizer)
        model = CachedModel(open_model(folder, target.dtype, target.device), eight_bits=target.eight_bits)
        return CausalDraft(model, target.vocabulary, _calibrator(folder))
    network = load_network(Path(draft))
    unknown = network.token_ids[(network.token_ids < 0) | (network.token_ids >= target.vocabulary)]
    if len(unknown):
        first = int(unknown[0])
        raise PairError(f"The feature draft proposes token {first}; the target knows {target.vocabulary} tokens.")
    calibrator = _calibrator(Path(draft).parent)
    return FeatureDraft(network, target.embedding, target.context_limit, calibrator, eight_bits=target.eight_bits)


def encode_chat(tokenizer: PreTrainedTokenizerBase, turns: Sequence[str]) -> tuple[int, ...]:
    """Encodes a conversation that waits for an answer as token ids. User and assistant take turns.

    A tokenizer without a chat template encodes the turns as plain text.

    Raises:
        LimitError: a user's turn is empty.
        ModelFileError: the chat template cannot be rendered.
    """
    for turn in turns[::2]:  # an answer may well be empty
        check_text(turn)
    if not tokenizer.chat_template:
        return tuple(tokenizer.encode("\n".join(turns)))
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)]
    return tuple(tokenizer(render_chat(tokenizer, messages), add_special_tokens=False)["input_ids"])


def check_text(text: str) -> None:
    """Refuses a prompt without text.

    Raises:
        LimitError: there is only white space.
    """
    if not text.strip():
        raise LimitError(f"The prompt is empty: expected some text to answer; got {text!r}.")


def _resolve(draft: str | None, target: str) -> str:
    """The path of a draft that was named as shipped, or the default; any other name unchanged."""
    shipped = PAIRS.get(target, {})
    if draft is None:
        return str(next(iter(shipped.values()), LOOKUP))
    return str(shipped.get(draft, draft))


def _short(draft: str) -> str:
    """The name of a draft in results: the shipped draft's name, or a file without its folder."""
    names = {str(place): name for name, place in _SHIPPED.items()}
    return names.get(draft, Path(draft).name if draft.endswith(".safetensors") else draft)


def _is_model(draft: str) -> bool:
    return draft != LOOKUP and not draft.endswith(".safetensors")


def _calibrator(folder: Path) -> Calibrator | None:
    path = folder / CALIBRATOR
    return load_calibrator(path) if path.exists() else None


def _checked_draft(draft: str, tokenizer: PreTrainedTokenizerBase) -> Path:
    """The folder of a causal draft model, checked to have the target's vocabulary."""
    folder = locate_model(draft)
    check_folder(folder, check_draft)
    check_vocabulary(tokenizer, load_tokenizer(folder))
    return folder


def find_device(name: str) -> torch.device:
    """Returns a device that models can run on, cpu or cuda. Raises `ParameterError` if it is not there or another."""
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"models run on cpu or cuda, not on {device.type}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ParameterError(f"Device {name!r} is not available here ({error}). Use cpu.") from error
    return device

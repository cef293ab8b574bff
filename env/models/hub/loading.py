"""Reading a model's folder through transformers: whole, or refused with the folder's name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from specgym.env.common.errors import ModelFileError

REMEDY = "Copy or save the model there again, or choose another one."


def load_config(folder: Path) -> PretrainedConfig:
    """Reads a model's configuration.

    Raises:
        ModelFileError: config.json cannot be read, or describes no model that transformers knows.
    """
    with _told("config.json", folder):
        return AutoConfig.from_pretrained(folder, local_files_only=True)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Reads a model's tokenizer.

    Raises:
        ModelFileError: there is none, or its files cannot be read.
    """
    with _told("tokenizer", folder):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # Without its files, some model types (Qwen2, GPT-2) get a tokenizer that knows its marks and no text.
    if tokenizer.get_vocab().keys() <= tokenizer.get_added_vocab().keys():
        raise ModelFileError(
            f"The tokenizer in {folder} has no vocabulary. Expected tokenizer.json, or the files that the model type "
            f"uses instead. {REMEDY}"
        )
    return tokenizer


def load_causal_model(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Loads a causal language model with all its weights.

    Args:
        folder: the model's folder.
        dtype: precision of the weights.
        device: where they are put.

    Raises:
        ModelFileError: the weights do not load, or some are missing or have another shape than config.json says.
    """
    transformers_logging.disable_progress_bar()  # the commands show their own
    with _told("model", folder):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    _check_whole(folder, report["missing_keys"], report["mismatched_keys"])
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def _check_whole(
    folder: Path, missing: Iterable[str], mismatched: Iterable[tuple[str, torch.Size, torch.Size]]
) -> None:
    """Refuses weights of which transformers made some up. Tied weights do not count as missing there."""
    problems = [f"{name} is missing" for name in sorted(missing)]
    problems += [
        f"{name} has shape {list(came)}, expected {list(expected)}" for name, came, expected in sorted(mismatched)
    ]
    if problems:
        raise ModelFileError(
            f"The model in {folder} does not load: its weights do not fit its config.json. Tensors that are missing or "
            f"have another shape: {len(problems):,}. For example {problems[0]}. {REMEDY}"
        )


@contextlib.contextmanager
def _told(what: str, folder: Path) -> Iterator[None]:
    """Turns whatever goes wrong inside into a `ModelFileError` that names the folder."""
    try:
        yield
    except Exception as error:  # transformers, tokenizers, safetensors and huggingface_hub each raise their own kinds
        raise ModelFileError(
            f"The {what} in {folder} does not load ({type(error).__name__}: {error}). {REMEDY}"
        ) from error

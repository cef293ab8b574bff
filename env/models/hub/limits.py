"""Checks the files of a model's folder before any library reads them.

A configuration may claim any size. Libraries believe it, allocate memory and make layers until nothing is left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from specgym.env.common.errors import ModelFileError
from specgym.env.common.reading import JSON_BYTES, WRONG_VALUES, check_regular, read_json

_READ = {".json", ".jinja", ".model", ".txt", ".tiktoken", ".safetensors"}  # suffixes of files that libraries read
_VOCABULARY_BYTES = 2**26  # most of a tokenizer's file
_SETTINGS = re.compile(r".*config\.json|.*\.jinja|.*\.index\.json")  # small files
# The largest sizes by the names that configurations give them.
_MOST = {
    re.compile(r"num_hidden_layers|n_layers?|num_layers|num_(de|en)coder_(layers|blocks)"): 2**11,
    re.compile(r"(num|n|moe_num)(_local|_routed|_shared)?_experts"): 2**12,
    re.compile(r"(.*_)?vocab_size|n_positions|max_position_embeddings"): 2**27,
    re.compile(r"(.*_)?(hidden|intermediate|embedding)_size|(hidden|ffn|inner|embed|head)_dim|d_model|d_ff"): 2**20,
    re.compile(r"n_embd|n_inner|(num|n)(_.*)?_heads?"): 2**20,
}


def check_files(folder: Path, weights: list[Path], remedy: str) -> None:
    """Checks that a folder's files are regular and not too large, and that its configuration has possible values.

    Args:
        folder: the model's folder.
        weights: its files of weights.
        remedy: what the user can do about a problem; ends the message.

    Raises:
        ModelFileError: the first problem.
    """
    path = folder / "adapter_config.json"
    if path.exists():
        raise ModelFileError(
            f"{path} belongs to an adapter, which is not applied here. Expected a model with its adapter merged. Merge "
            "it, save the model in another folder and name that folder."
        )
    try:
        for path in sorted(folder.iterdir()):
            if path.suffix in _READ and path.exists() and path not in weights:
                size, small = check_regular(path), _SETTINGS.fullmatch(path.name)
                if size > (most := JSON_BYTES if small else _VOCABULARY_BYTES) and path.suffix != ".safetensors":
                    raise ValueError(f"expected at most {most:,} bytes, got {size:,}")
        path = folder / "generation_config.json"
        if path.exists():
            _check_tokens(_record(path))
        path = folder / "config.json"
        config = _record(path)
        _check_tokens(config)
        _check_numbers(config)
        for part in _parts(config):
            _check_sizes(part)
    except (OSError, SafetensorError, *WRONG_VALUES) as error:
        raise ModelFileError(f"{path} is missing, unreadable or wrong ({error}). {remedy}") from error


def _record(path: Path) -> dict[str, Any]:
    record = read_json(path, finite=False)  # recurrent models write infinite limits
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {type(record).__name__}")
    return record


def _parts(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields a configuration and the configurations in it, those of text and images."""
    yield config
    for name, value in config.items():
        if isinstance(value, dict) and name.endswith("_config") and name != "quantization_config":
            yield from _parts(value)


def count_numbers(weights: list[Path]) -> int:
    """Returns how many numbers files of weights hold. Raises `OSError`, `SafetensorError`."""
    numbers = 0
    for path in weights:
        with safe_open(path, framework="numpy") as file:
            numbers += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return numbers


def _check_sizes(config: Mapping[str, Any]) -> None:
    """Refuses sizes that no model has. Raises `ValueError`."""
    for name, value in config.items():
        most = next((most for pattern, most in _MOST.items() if pattern.fullmatch(name)), None)
        for size in value if isinstance(value, list) else [value]:
            if most and size is not None and (type(size) is not int or not -1 <= size <= most):
                raise ValueError(f"expected {name} to be a whole number up to {most:,}, got {size!r:.40}")
    needed = ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads")
    if zero := [name for name in needed if config.get(name) in (0, -1)]:
        raise ValueError(f"expected {zero[0]} of 1 or more, got {config[zero[0]]}")


def _check_numbers(config: Mapping[str, Any]) -> None:
    """Refuses norms and rotations without meaning, and code from elsewhere. Raises `ValueError`."""
    rope = config.get("rope_parameters")
    for name, value in {**config, **(rope if isinstance(rope, dict) else {})}.items():
        is_number = type(value) in (int, float)
        if re.fullmatch(r".*(norm_eps|norm_epsilon)", name) and not (is_number and 0 <= value < 1):
            raise ValueError(f"expected {name} from 0 to 1, got {value!r:.40}")
        if name == "rope_theta" and value is not None and not (is_number and value > 0):
            raise ValueError(f"expected a positive {name}, got {value!r:.40}")
        # transformers fetches the code of such kernels from the hub, and runs it.
        if name.endswith("_implementation") and "/" in str(value):
            raise ValueError(f"its {name} names code to fetch ({value!r:.80}), which SpecGym never runs")


def _check_tokens(config: Mapping[str, Any]) -> None:
    """Refuses special tokens that are no token ids. Raises `ValueError`."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = config.get(name)
        for token in ids if isinstance(ids, list) else [] if ids is None else [ids]:
            if type(token) is not int or not -1 <= token < 2**31:
                raise ValueError(f"expected {name} to be a token id, a list of them or null; got {token!r:.40}")

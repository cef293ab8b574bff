"""Reading a model's folder: completely, or with an error that names the folder.

A plain Llama is read here, without transformers' model classes: importing them takes longer than loading a small model.
All other models are left to transformers, whose modeling classes are imported on first use. The model object of
transformers is loaded when it is first needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from specgym.env.common.errors import ModelFileError
from specgym.env.common.reading import WRONG_VALUES, read_bounded, read_json
from specgym.env.models.fast.lean import LlamaWeights
from specgym.env.models.hub.limits import count_numbers
from specgym.env.models.hub.store import weight_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_SAMPLES = 4096
_SPARE = 2**26  # numbers that a model may make besides its weights, such as masks
_OWN: dict[str, bool] = {"local_files_only": True, "trust_remote_code": False}  # no question, and no stranger's code
REMEDY = "Copy or save the model there again, or choose another one."
_PLAIN = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu"}
# Settings that change a Llama, or how it is loaded. They must be absent, null, false or zero.
_ABSENT = ["attention_bias", "mlp_bias", "quantization_config", "auto_map", "rope_scaling", "layer_types"]
_ABSENT += ["sliding_window", "attention_chunk_size", "alibi", "is_encoder_decoder", "text_config"]
_EMBEDDING, _NORM, _HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def load_config(folder: Path) -> PretrainedConfig:
    """Reads a model's configuration.

    Raises:
        ModelFileError: config.json cannot be read, or its model is unknown to transformers.
    """
    with _errors_of("config.json", folder):
        return transformers.AutoConfig.from_pretrained(folder, **_OWN)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Reads a model's tokenizer.

    Raises:
        ModelFileError: the tokenizer is missing, or its files cannot be read.
    """
    with _errors_of("tokenizer", folder):
        tokenizer: PreTrainedTokenizerBase = _tokenizer_class(folder).from_pretrained(folder, **_OWN)
    # Without its files, some model types (Qwen2, GPT-2) get a tokenizer with special tokens and no text.
    if tokenizer.get_vocab().keys() <= tokenizer.get_added_vocab().keys():
        raise ModelFileError(
            f"The tokenizer in {folder} has no vocabulary. Expected tokenizer.json, or the files that the model type "
            f"uses instead. {REMEDY}"
        )
    return tokenizer


def _tokenizer_class(folder: Path) -> Any:
    """Returns `AutoTokenizer`, or its choice if that is obvious: importing `AutoTokenizer` takes a second."""
    with contextlib.suppress(OSError, *WRONG_VALUES):
        settings = json.loads(read_bounded(folder / "tokenizer_config.json"))
        is_llama = read_json(folder / "config.json")["model_type"] == "llama"
        if is_llama and "auto_map" not in settings and (folder / "tokenizer.json").is_file():
            if settings["tokenizer_class"] in {"TokenizersBackend", "PreTrainedTokenizerFast"}:
                return transformers.PreTrainedTokenizerFast
            if settings["tokenizer_class"] in {"GPT2Tokenizer", "GPT2TokenizerFast"}:  # of SmolLM2 on the hub
                return transformers.GPT2Tokenizer
    return transformers.AutoTokenizer


def load_causal_model(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Loads a causal language model with all its weights.

    Args:
        folder: the model's folder.
        dtype: precision of the weights.
        device: device of the weights.

    Raises:
        ModelFileError: the weights do not load, some are missing, or some do not have the shape that config.json gives.
    """
    transformers.logging.disable_progress_bar()  # the commands show their own
    with _errors_of("model", folder), contextlib.ExitStack() as stack:
        # The library's table of missing tensors would stand before the one message that says so.
        stack.callback(transformers.logging.set_verbosity, transformers.logging.get_verbosity())
        transformers.logging.set_verbosity_error()
        _check_claims(folder)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True, **_OWN
        )
    # transformers invents these weights. It does not report tied weights as missing.
    problems = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    mismatched = sorted(report["mismatched_keys"])
    problems += [f"{name} has shape {list(came)}, expected {list(right)}" for name, came, right in mismatched]
    if problems:
        raise ModelFileError(
            f"The model in {folder} does not load: its weights do not fit its config.json. Tensors that are missing or "
            f"have another shape: {len(problems):,}. For example {problems[0]}. {REMEDY}"
        )
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def _check_claims(folder: Path) -> None:
    """Refuses a configuration whose model is far larger than its weights: loading would allocate what is missing.

    Raises:
        ValueError: it is.
    """
    config = transformers.AutoConfig.from_pretrained(folder, **_OWN)
    if getattr(config, "quantization_config", None) is not None:
        return  # weights have other shapes in the file
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    claimed = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    stored = count_numbers(weight_files(folder))
    if claimed > 2 * stored + _SPARE:
        raise ValueError(f"config.json claims {claimed:,} numbers, the weights have {stored:,}")


@dataclass(frozen=True)
class StoredLlama:
    """A plain Llama in its folder."""

    folder: Path
    dtype: torch.dtype
    device: torch.device
    vocabulary: int
    """number of tokens"""
    context_limit: int
    """longest text [tokens]"""
    end_tokens: frozenset[int]
    """ids that end a text"""
    layers: int
    dim: int
    """width of an attention head"""
    epsilon: float
    """added to the mean square in norms"""
    theta: float
    """base of the rotary position embedding"""

    @property
    def generation_config(self) -> transformers.GenerationConfig:
        """The settings of text generation that come with the model."""
        with _errors_of("generation configuration", self.folder):
            return transformers.GenerationConfig.from_dict(_generation_settings(self.folder))

    def weights(self) -> LlamaWeights:
        """Reads the weights. On a CPU they stay mapped to the file if they are used in the file's precision."""
        tensors = {name: tensor.to(self.device, self.dtype) for name, tensor in _tensors(self.folder).items()}
        embedding: nn.Embedding = nn.Embedding.from_pretrained(tensors[_EMBEDDING])  # type: ignore[no-untyped-call]
        tensors.setdefault(_HEAD, embedding.weight)
        speeds = 1.0 / self.theta ** (torch.arange(0, self.dim, 2, dtype=torch.float) / self.dim)  # [dim / 2]

        def angles(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            turned = positions[:, None].float() * speeds.to(positions.device)
            return turned.cos(), turned.sin()

        return LlamaWeights(tensors, embedding, self.layers, self.dim, self.epsilon, self.dim**-0.5, angles)

    def load(self) -> PreTrainedModel:
        """Loads the model as an object of transformers. Raises `ModelFileError`."""
        return load_causal_model(self.folder, self.dtype, self.device)


def open_llama(folder: Path, dtype: torch.dtype, device: torch.device) -> StoredLlama | None:
    """Looks at a folder's configuration and at the shapes of its weights; None unless they are a plain Llama's.

    Args:
        folder: the model's folder.
        dtype: precision of the weights in use.
        device: device of the weights in use.
    """
    # If something is wrong with the folder, transformers' own loading reports it.
    with contextlib.suppress(OSError, SafetensorError, ModelFileError, *WRONG_VALUES):
        config = read_json(folder / "config.json")  # a plain Llama has no infinite numbers
        rope = config.get("rope_parameters") or {"rope_theta": config["rope_theta"]}  # older ones have the number only
        dim = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
        is_plain = (
            config == config | _PLAIN
            and not any(map(config.get, _ABSENT))
            and "is_decoder" not in config
            and {"rope_type": "default"} | rope == {"rope_type": "default", "rope_theta": rope["rope_theta"]}
        )
        if is_plain and {name: tensor.shape for name, tensor in _tensors(folder).items()} == _plain_shapes(config, dim):
            return StoredLlama(
                folder,
                dtype,
                device,
                vocabulary=int(config["vocab_size"]),
                context_limit=int(config["max_position_embeddings"]),
                end_tokens=_end_tokens(folder, config),
                layers=int(config["num_hidden_layers"]),
                dim=dim,
                epsilon=float(config["rms_norm_eps"]),
                theta=float(rope["rope_theta"]),
            )
    return None


def open_model(folder: Path, dtype: torch.dtype, device: torch.device) -> StoredLlama | PreTrainedModel:
    """Opens a plain Llama, and loads any other model; arguments as for `open_llama`. Raises `ModelFileError`."""
    return open_llama(folder, dtype, device) or load_causal_model(folder, dtype, device)


def check_folder(folder: Path, check: Callable[[PretrainedConfig], None]) -> None:
    """Calls `check` with a folder's configuration, unless it is a plain Llama's, which is known to work.

    Raises:
        ModelFileError: config.json cannot be read.
        PairError: as `check`.
    """
    if open_llama(folder, torch.float32, torch.device("cpu")) is None:
        check(load_config(folder))


def token_set(ids: int | list[int] | tuple[int, ...] | None) -> frozenset[int]:
    """Returns token ids, as configurations give them, as a set."""
    if ids is None:
        return frozenset()
    return frozenset(int(token) for token in (ids if isinstance(ids, list | tuple) else [ids]))


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Returns a model's weights, mapped to their files."""
    return {name: tensor for path in weight_files(folder) for name, tensor in load_file(path).items()}


def _plain_shapes(config: Mapping[str, Any], dim: int) -> dict[str, tuple[int, ...]]:
    hidden, inner, table = (int(config[name]) for name in ("hidden_size", "intermediate_size", "vocab_size"))
    queries, states = (int(config[f"num_{kind}_heads"]) * dim for kind in ("attention", "key_value"))
    layer: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (hidden,)),
        **dict.fromkeys(("self_attn.k_proj", "self_attn.v_proj"), (states, hidden)),
        **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (inner, hidden)),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.down_proj": (hidden, inner),
    }
    numbers = range(int(config["num_hidden_layers"]))
    shapes = {f"model.layers.{number}.{name}.weight": shape for number in numbers for name, shape in layer.items()}
    shapes |= {_EMBEDDING: (table, hidden), _NORM: (hidden,)}
    return shapes if config.get("tie_word_embeddings") else shapes | {_HEAD: (table, hidden)}


def _end_tokens(folder: Path, config: Mapping[str, Any]) -> frozenset[int]:
    end = _generation_settings(folder).get("eos_token_id")
    return token_set(config.get("eos_token_id") if end is None else end)


def _generation_settings(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return read_json(path) if path.exists() else {}


def fingerprint(module: nn.Module) -> str:
    """Returns a text that identifies weights on any device and, if they were stored in bfloat16, in any precision.

    It is a shortened SHA-256 of the names and shapes of all parameters, and of `_SAMPLES` evenly spaced values of each.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        values = parameter.detach().flatten()
        index = torch.linspace(0, len(values) - 1, min(_SAMPLES, len(values)), dtype=torch.float64).long()
        sample = values[index.to(values.device)].to(torch.bfloat16).view(torch.int16).cpu().numpy()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _errors_of(what: str, folder: Path) -> Iterator[None]:
    """Turns any error inside into a `ModelFileError` that names the folder."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the libraries raise their own kinds; tokenizers' panics are no `Exception`
        reason = f"{type(error).__name__}: {error}"
        if "trust_remote_code" in reason:
            reason = "it needs code of its own, which SpecGym never runs"
        raise ModelFileError(f"The {what} in {folder} does not load ({reason}). {REMEDY}") from error

"""A plain Llama is read from its folder without transformers' model classes, to the same bits; no other model is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, PreTrainedModel

from specgym.env.models.hub.loading import (
    StoredLlama,
    fingerprint,
    load_causal_model,
    load_tokenizer,
    open_llama,
    open_model,
)
from specgym.env.models.hub.store import locate_model
from specgym.env.models.target import TargetModel
from tests.support.tiny_models import SHAPE, tiny_llama
from tests.support.tiny_pair import save_tiny_folders, tiny_tokenizer

CPU = torch.device("cpu")
TEXT = [5, 6, 7, 8, 9, 3]
TREE = np.array([4, 11, 2, 12])


def save(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    model = tiny_llama(dtype=dtype, **changes)
    model.save_pretrained(folder)
    return model


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value != "absent"}), encoding="utf-8")


def logits(target: TargetModel) -> list[torch.Tensor | None]:
    """Returns the logits of a text and of a tree behind it, and the tree's hidden states."""
    target.show_features((0,))
    visible = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]], bool)
    read = target.extend_all(TEXT)
    return [read, target.extend_tree(TREE, len(TEXT) + np.array([0, 0, 1, 1]), visible), target.features]


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": True}, {"head_dim": 12}, {"eos_token_id": [3, 5]}, {"num_key_value_heads": 4}],
    ids=["as it is", "tied", "wide heads", "two ends", "no groups"],
)
def test_a_stored_llama_has_the_bits_of_its_object(tmp_path: Path, dtype: torch.dtype, changes: dict[str, Any]) -> None:
    save(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 50_000.0}, **changes)
    stored = open_llama(tmp_path, dtype, CPU)
    assert stored is not None
    target, reference = TargetModel(stored), TargetModel(load_causal_model(tmp_path, dtype, CPU))
    for ours, expected in zip(logits(target), logits(reference), strict=True):
        assert ours is not None
        assert expected is not None
        assert torch.equal(ours, expected)
    for field in ("vocabulary", "context_limit", "end_tokens", "dtype", "state_dtype", "precision"):
        assert getattr(target, field) == getattr(reference, field), field
    assert torch.equal(target.embedding.weight, reference.embedding.weight)


@torch.inference_mode()
def test_the_object_of_a_stored_llama_is_loaded_when_it_is_needed(tmp_path: Path) -> None:
    made = save(tmp_path)
    target = TargetModel(open_model(tmp_path, torch.float32, CPU))
    before = logits(target)[0]
    with target.lent() as model:
        assert model.config._attn_implementation == "sdpa"
        assert fingerprint(model) == fingerprint(made)
    assert target.model is model
    target.start()
    assert torch.equal(before, target.extend_all(TEXT))
    model.lm_head.weight.mul_(2)  # weights that are changed count, as with any model object
    target.start()
    assert torch.equal(2 * before, target.extend_all(TEXT))


def test_older_configurations_are_read_too(tmp_path: Path) -> None:
    save(tmp_path)
    change_config(tmp_path, rope_parameters="absent", rope_theta=10_000.0, rope_scaling=None)
    assert isinstance(open_model(tmp_path, torch.float32, CPU), StoredLlama)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"sliding_window": 16},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"model_type": "mistral"},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"is_decoder": False},
        {"vocab_size": 30},
        {"num_hidden_layers": 1},
        {"tie_word_embeddings": True},
        {"rms_norm_eps": "absent"},
    ],
    ids=str,
)
def test_anything_but_a_plain_llama_is_left_to_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    save(tmp_path)
    assert open_llama(tmp_path, torch.float32, CPU) is not None, "the test would be vacuous"
    change_config(tmp_path, **changes)
    assert open_llama(tmp_path, torch.float32, CPU) is None


@pytest.mark.parametrize("problem", ["missing", "more", "shape"])
def test_weights_that_are_not_those_of_the_configuration_are_left_to_transformers(tmp_path: Path, problem: str) -> None:
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    if problem == "missing":
        del tensors["model.norm.weight"]
    elif problem == "more":
        tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)
    else:
        tensors["model.norm.weight"] = torch.ones(8)
    save_file(tensors, path)
    assert open_llama(tmp_path, torch.float32, CPU) is None


@pytest.mark.parametrize("name", ["TokenizersBackend", "PreTrainedTokenizerFast", "GPT2Tokenizer", "GPT2TokenizerFast"])
def test_the_tokenizer_of_a_llama_is_the_one_that_transformers_chooses(tmp_path: Path, name: str) -> None:
    LlamaConfig(**SHAPE).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": name}
    path.write_text(json.dumps(settings), encoding="utf-8")
    ours, expected = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert type(ours) is type(expected)
    assert ours.get_vocab() == expected.get_vocab()
    assert ours.special_tokens_map == expected.special_tokens_map
    messages = [{"role": "user", "content": "What is 3 + 4?"}]
    both = (tokenizer.apply_chat_template(messages, return_dict=False) for tokenizer in (ours, expected))
    assert next(both) == next(both)


def test_a_plain_llama_starts_without_the_model_classes_of_transformers(tmp_path: Path) -> None:
    folders = save_tiny_folders(tmp_path)
    code = (
        "import sys; from specgym.env.decoding.pair import load_pair, encode_chat\n"
        "from specgym.env.tree.rounds import Request\n"
        "from specgym.env.tree.parameters import TreeParameters\n"
        "pair = load_pair(*sys.argv[1:3]); decoder = pair.decoder()\n"
        "decoder.start(Request(encode_chat(pair.tokenizer, ['hello']), 8)); decoder.round(TreeParameters())\n"
        "print([name for name in ('transformers.modeling_utils', 'torch._dynamo', 'scipy', 'sympy', 'accelerate')"
        " if name in sys.modules])"
    )
    for draft in (folders.draft, folders.feature_draft):
        command = [sys.executable, "-c", code, str(folders.target), str(draft)]
        printed = subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | {"SPECGYM_NATIVE": "0"}
        )
        assert printed.stdout.strip() == "[]"


@pytest.mark.real_pair
def test_the_default_target_is_a_plain_llama() -> None:
    assert open_llama(locate_model("smollm2-135m-instruct"), torch.bfloat16, CPU) is not None

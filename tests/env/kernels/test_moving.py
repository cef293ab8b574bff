"""Weights of a file leave memory and come back unchanged; numbers that exist in memory only stay."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from specgym.env.drafts.feature import LeanDraft
from specgym.env.drafts.network import FeatureDraftConfig, FeatureDraftNetwork, load_network, save_network
from specgym.env.kernels.moving import release_pages, trim_heap
from specgym.env.models.fast.lean import LeanModel
from specgym.env.models.fast.packed import best_packing
from specgym.env.models.hub.loading import open_llama, open_model
from specgym.env.models.target import TargetModel
from tests.support.tiny_models import tiny_llama

CPU = torch.device("cpu")
PAGES = Path("/proc/self/pagemap")
pytestmark = pytest.mark.skipif(not PAGES.exists(), reason="this system does not say which pages it holds")


def held(weight: torch.Tensor) -> float:
    """Returns the share of a tensor's full pages that are in memory."""
    first = -(-weight.data_ptr() // mmap.PAGESIZE)
    count = (weight.data_ptr() + weight.nbytes) // mmap.PAGESIZE - first
    pages = np.fromfile(PAGES, np.uint64, count, offset=8 * first)
    return float(np.mean(pages >> np.uint64(63)))


@pytest.fixture
def mapped(tmp_path: Path) -> torch.Tensor:
    """A mebibyte of a file, all of it read."""
    save_file({"weight": torch.arange(2**19, dtype=torch.int16)}, tmp_path / "file.safetensors")
    weight = load_file(tmp_path / "file.safetensors")["weight"]
    assert weight.sum() == torch.arange(2**19, dtype=torch.int16).sum()
    assert held(weight) == 1, "the test would be vacuous"
    return weight


def test_pages_of_a_file_go_and_come_back_with_the_same_numbers(mapped: torch.Tensor) -> None:
    assert release_pages(mapped)
    assert held(mapped) == 0
    assert torch.equal(mapped, torch.arange(2**19, dtype=torch.int16))
    assert held(mapped) == 1


def test_numbers_that_were_changed_since_stay(mapped: torch.Tensor) -> None:
    mapped[1000] = -5
    assert not release_pages(mapped)
    assert mapped[1000] == -5
    assert held(mapped) == 1


def test_numbers_that_were_made_in_memory_stay() -> None:
    made = torch.full((2**19,), 7, dtype=torch.int16)
    assert not release_pages(made)
    assert bool((made == 7).all())


def test_what_is_no_plain_stretch_of_memory_is_left_alone(mapped: torch.Tensor) -> None:
    assert not release_pages(mapped.view(1024, 512).T)
    assert not release_pages(torch.empty(4, device="meta"))
    assert held(mapped) == 1


def test_what_was_freed_can_be_returned_at_any_time() -> None:
    kept = torch.arange(1000)
    trim_heap()
    assert torch.equal(kept, torch.arange(1000))


packs = pytest.mark.skipif(
    best_packing(torch.bfloat16, CPU, 128, 512) == "none", reason="this machine has no packed bfloat16 kernels"
)


@packs
def test_a_packed_model_holds_no_second_copy_of_its_weights_and_can_show_them_all_the_same(tmp_path: Path) -> None:
    made = tiny_llama(dtype=torch.bfloat16, hidden_size=512, intermediate_size=2048, vocab_size=4096)
    made.save_pretrained(tmp_path)
    stored = open_llama(tmp_path, torch.bfloat16, CPU)
    assert stored is not None
    weights = stored.weights()
    assert LeanModel(weights).packed
    matrices = [weight for name, weight in weights.tensors.items() if "proj" in name or "head" in name]
    assert len(matrices) == 7 * made.config.num_hidden_layers + 1, "the test would be vacuous"
    # A few pages come back with their neighbours in the file.
    assert sum(held(weight) * weight.numel() for weight in matrices) < sum(weight.numel() for weight in matrices) / 4
    for name, weight in made.state_dict().items():
        assert torch.equal(weights.tensors[name], weight)


@packs
def test_a_long_prompt_has_pages_of_the_table_returned_that_earlier_texts_have_looked_at(tmp_path: Path) -> None:
    made = tiny_llama(dtype=torch.bfloat16, hidden_size=512, intermediate_size=2048, vocab_size=4096)
    made.save_pretrained(tmp_path)
    target = TargetModel(open_model(tmp_path, torch.bfloat16, CPU))
    table = target.embedding.weight
    tokens = [5] * 300
    first = target.extend(tokens)
    target.cache.reset()
    assert torch.equal(table, made.get_input_embeddings().weight)  # looks at all of it
    assert held(table) == 1, "the test would be vacuous"
    target.extend(tokens[:20])
    assert held(table) == 1
    target.cache.reset()
    again = target.extend(tokens)
    assert held(table) < 0.1
    assert torch.equal(first, again)


@packs
def test_a_packed_draft_holds_no_second_copy_of_its_weights_and_can_show_them_all_the_same(tmp_path: Path) -> None:
    config = FeatureDraftConfig(512, 4, 2, 128, 1024, 2048, feature_layers=(0,))
    made = FeatureDraftNetwork(config).to(torch.bfloat16)
    save_network(made, tmp_path / "draft.safetensors", {})
    network = load_network(tmp_path / "draft.safetensors")
    packed = LeanDraft(network, torch.zeros(8, 512, dtype=torch.bfloat16))
    matrices = [module.weight for module in network.modules() if isinstance(module, torch.nn.Linear)]
    assert sum(held(weight) * weight.numel() for weight in matrices) < sum(weight.numel() for weight in matrices) / 4
    for name, weight in made.state_dict().items():
        assert torch.equal(network.state_dict()[name], weight)
    assert torch.isfinite(packed.head(torch.ones(1, 512, dtype=torch.bfloat16))).all()

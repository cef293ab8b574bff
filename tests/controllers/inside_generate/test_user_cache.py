"""A user's cache is read where it holds the beginning of the text, and extended as `generate` extends it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Cache, DynamicCache, StaticCache

from specgym.env.common.errors import LimitError, ParameterError
from specgym.env.drafts.network import save_network
from tests.controllers.inside_generate.conftest import Compared
from tests.support.tiny_models import tiny_network
from tests.support.tiny_pair import VOCABULARY


def read(compared: Compared, tokens: int) -> DynamicCache:
    """A cache that holds the prompt's first tokens."""
    cache = DynamicCache(config=compared.model.config)
    if tokens:
        with torch.no_grad():
            compared.model(compared.prompt[:, :tokens], past_key_values=cache)
    return cache


def states(cache: Cache) -> list[torch.Tensor]:
    return [each for layer in cache.layers for each in (layer.keys, layer.values)]


@pytest.mark.parametrize("tokens", [0, 1, 3, 7])
def test_the_beginning_is_read_and_the_cache_extended(compared: Compared, tokens: int) -> None:
    theirs, ours = read(compared, tokens), read(compared, tokens)
    before = ours.layers[0].keys if tokens else torch.empty(0)
    plain = compared.plain(past_key_values=theirs)
    assert compared.ours(past_key_values=ours).tolist() == plain.tolist()
    assert ours.get_seq_length() == theirs.get_seq_length() == plain.shape[1] - 1
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(states(ours), states(theirs), strict=True))
    assert torch.equal(ours.layers[0].keys[:, :, :tokens], before) or not tokens


def test_what_the_cache_holds_decides(compared: Compared) -> None:
    """The cache of another text, or one that was changed, gives another continuation."""
    changed = read(compared, 5)
    for layer in changed.layers:
        layer.values = layer.values * -2
    plain = compared.plain(past_key_values=copy.deepcopy(changed))
    assert compared.ours(past_key_values=changed).tolist() == plain.tolist() != compared.plain().tolist()


def test_a_conversation_goes_on_with_its_cache(compared: Compared) -> None:
    texts = []
    for generate in (compared.plain, compared.ours):
        cache, text = read(compared, 0), compared.prompt
        for _ in range(3):
            text = generate(inputs=text, past_key_values=cache, max_new_tokens=6)
            text = torch.cat([text, torch.tensor([[41, 40]])], dim=1)
        texts.append(text.tolist())
    assert texts[0] == texts[1]


def test_a_static_cache_is_filled(compared: Compared) -> None:
    caches = [StaticCache(config=compared.model.config, max_cache_len=64) for _ in range(2)]
    plain = compared.plain(past_key_values=caches[0], disable_compile=True)
    assert compared.ours(past_key_values=caches[1]).tolist() == plain.tolist()
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(*map(states, caches), strict=True))


class TestRefused:
    def test_a_cache_of_other_tokens(self, compared: Compared) -> None:
        prompt, mask = compared.prompt[:, 3:], torch.ones_like(compared.prompt)
        padded = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
        for request in ({"inputs": prompt, "attention_mask": mask}, {"attention_mask": padded}):
            with pytest.raises(ParameterError, match="hold 3 tokens, unless these are the first of the prompt"):
                compared.ours(past_key_values=read(compared, 3), **request)

    def test_a_cache_that_computes_otherwise(self, compared: Compared) -> None:
        class Lossy(DynamicCache):  # type: ignore[misc]  # transformers is not typed
            pass

        with pytest.raises(ParameterError, match="of type Lossy"):
            compared.ours(past_key_values=Lossy())

    def test_a_cache_of_another_model(self, compared: Compared) -> None:
        cache = read(compared, 3)
        cache.layers = cache.layers[:1]
        with pytest.raises(ParameterError, match="past_key_values of 2 layers; got 1"):
            compared.ours(past_key_values=cache)

    def test_several_texts(self, compared: Compared) -> None:
        with pytest.raises(LimitError, match="one text with past_key_values; got 2"):
            compared.ours(inputs=compared.prompt.repeat(2, 1), past_key_values=DynamicCache())

    def test_a_draft_that_needs_states_of_all_tokens(self, compared: Compared, tmp_path: Path) -> None:
        path = tmp_path / "draft.safetensors"
        save_network(tiny_network(vocabulary=VOCABULARY), path, {})
        request: dict[str, Any] = {"draft": str(path)}
        with pytest.raises(ParameterError, match="a draft without hidden states"):
            compared.ours(past_key_values=read(compared, 3), **request)
        assert compared.ours(past_key_values=read(compared, 0), **request).tolist() == compared.plain().tolist()

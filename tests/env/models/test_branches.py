"""A model that the tests do not know is tried out on a small tree, and refused by name if it reads it wrongly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from specgym.env.common.errors import PairError
from specgym.env.models.target import CachedModel
from tests.support.tiny_models import SHAPE


class OwnLlama(LlamaForCausalLM):  # type: ignore[misc]
    """A user's own class, which counts its forwards."""

    forwards = 0

    def forward(self, *args: Any, **settings: Any) -> Any:
        self.forwards += 1
        return super().forward(*args, **settings)


class Placeless(OwnLlama):
    """Numbers positions along the cache."""

    def forward(self, *args: Any, position_ids: Any = None, **settings: Any) -> Any:
        return super().forward(*args, **settings)


class Unmasked(OwnLlama):
    """Builds no masks by transformers."""

    def forward(self, *args: Any, attention_mask: Any = None, **settings: Any) -> Any:
        shown = torch.zeros(1, 1, 1, 1, dtype=self.dtype)
        return super().forward(*args, attention_mask=shown, **settings)


class Forgetful(OwnLlama):
    """Keeps no keys and values."""

    def forward(self, *args: Any, past_key_values: Any = None, **settings: Any) -> Any:
        return super().forward(*args, **settings)


def own(kind: type[PreTrainedModel], dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = kind(LlamaConfig(**SHAPE)).to(dtype).eval()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_of_the_users_own_that_reads_branches_apart_works_and_is_tried_once(dtype: torch.dtype) -> None:
    model = own(OwnLlama, dtype)
    cached = CachedModel(model)
    assert model.forwards > 0, "the test would be vacuous"
    assert cached.cache.length == 0
    tried = model.forwards
    CachedModel(model)
    assert model.forwards == tried


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [Placeless, Unmasked, Forgetful])
def test_a_model_of_the_users_own_that_reads_them_wrongly_is_refused_and_given_back(
    kind: type[PreTrainedModel], dtype: torch.dtype
) -> None:
    model = own(kind, dtype)
    before = model.config._attn_implementation
    with pytest.raises(PairError, match=rf"{kind.__name__} .*cannot work here: .*such as Llama"):
        CachedModel(model)
    assert model.config._attn_implementation == before

"""Texts share a batch and nothing else: whatever comes and goes beside it, a text is read as if it were alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from env.models.attention import ATTENTION
from env.models.slots import SlotCache
from tests.tiny import VOCABULARY, tiny_llama

SLOTS, CAPACITY = 4, 16


@pytest.fixture(scope="module")
def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    """One model twice: as it stands, and with the attention that slots need."""
    plain, slotted = tiny_llama(), tiny_llama()
    slotted.set_attn_implementation(ATTENTION)
    return plain, slotted


class Texts:
    """Texts in the slots of a model's cache, and their tokens as the test knows them."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.cache = model, SlotCache(model, SLOTS, CAPACITY)
        self.texts: list[list[int]] = []

    def add(self, prefix: list[int]) -> None:
        states = DynamicCache()
        if prefix:
            self.model.get_decoder()(torch.tensor([prefix]), past_key_values=states, use_cache=True)
        self.cache.add(states, len(prefix))
        self.texts.append(list(prefix))

    def remove(self, row: int) -> None:
        self.cache.remove(row)
        self.texts[row] = self.texts[-1]
        self.texts.pop()

    def step(self, tokens: list[int]) -> torch.Tensor:
        """Appends a token to every text; logits after each, `[texts, vocabulary]`."""
        for text, token in zip(self.texts, tokens, strict=True):
            text.append(token)
        logits = self.model(
            torch.tensor(tokens)[:, None],
            attention_mask=self.cache.mask(self.model.dtype),
            position_ids=self.cache.lengths[:, None],
            past_key_values=self.cache,
        ).logits[:, 0]
        self.cache.lengths += 1
        return logits


@settings(max_examples=40)
@given(st.data())
def test_every_text_is_read_as_if_it_were_alone(
    models: tuple[PreTrainedModel, PreTrainedModel], data: st.DataObject
) -> None:
    plain, slotted = models
    token = st.integers(0, VOCABULARY - 1)
    with torch.inference_mode():
        slots = Texts(slotted)
        for _ in range(data.draw(st.integers(1, 8), "rounds")):
            while slots.texts and data.draw(st.booleans(), "end one"):
                slots.remove(data.draw(st.integers(0, len(slots.texts) - 1), "row"))
            while len(slots.texts) < SLOTS and (not slots.texts or data.draw(st.booleans(), "begin one")):
                slots.add(data.draw(st.lists(token, max_size=CAPACITY - 8), "prefix"))
            count = len(slots.texts)
            logits = slots.step(data.draw(st.lists(token, min_size=count, max_size=count), "tokens"))
            for text, found in zip(slots.texts, logits, strict=True):
                torch.testing.assert_close(found, plain(torch.tensor([text])).logits[0, -1])
            assert slots.cache.lengths.tolist() == [len(text) for text in slots.texts]

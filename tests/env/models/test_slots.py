"""Texts that share a batch are read as if each were alone, whichever others begin and end."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from specgym.env.models.attention import use_tree_attention
from specgym.env.models.slots import SlotCache
from tests.support.architectures import kinds, tiny_model
from tests.support.tiny_models import VOCABULARY, tiny_llama

SLOTS, CAPACITY = 4, 16


@pytest.fixture(scope="module", params=["llama", "mistral", "gemma3n_text"])
def models(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Returns one model twice: unchanged, and with the attention that slots need. The last two have windows."""
    if request.param == "llama":
        plain, slotted = tiny_llama(), tiny_llama()
    else:
        plain, slotted = (tiny_model(kinds()[request.param]) for _ in range(2))
    use_tree_attention(slotted)
    return plain, slotted


class Texts:
    """Texts in the slots of a model's cache, and their tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.cache = model, SlotCache(model, SLOTS, CAPACITY)
        self.texts: list[list[int]] = []

    def add(self, prefixes: list[list[int]]) -> None:
        """Begins texts, read together and padded on the right."""
        states, width = DynamicCache(), max(map(len, prefixes))
        if width:
            padded = [prefix + [0] * (width - len(prefix)) for prefix in prefixes]
            self.model.get_decoder()(torch.tensor(padded), past_key_values=states, use_cache=True)
        self.cache.add(states, [len(prefix) for prefix in prefixes])
        self.texts += [list(prefix) for prefix in prefixes]

    def remove(self, rows: set[int]) -> None:
        left = {tuple(text) for row, text in enumerate(self.texts) if row not in rows}
        self.texts = [self.texts[row] for row in self.cache.remove(rows)]
        assert {tuple(text) for text in self.texts} == left

    def step(self, tokens: list[int]) -> torch.Tensor:
        """Appends a token to every text; logits after each, `[texts, vocabulary]`."""
        for text, token in zip(self.texts, tokens, strict=True):
            text.append(token)
        with self.cache.reading():
            logits = self.model(
                torch.tensor(tokens)[:, None],
                position_ids=self.cache.lengths[:, None],
                past_key_values=self.cache,
            ).logits[:, 0]
        self.cache.advance()
        return logits


@settings(max_examples=20)
@given(st.data())
def test_every_text_is_read_as_if_it_were_alone(
    models: tuple[PreTrainedModel, PreTrainedModel], data: st.DataObject
) -> None:
    plain, slotted = models
    token = st.integers(0, VOCABULARY - 1)
    with torch.inference_mode():
        slots = Texts(slotted)
        for _ in range(data.draw(st.integers(1, 8), "rounds")):
            slots.remove(data.draw(st.sets(st.sampled_from(range(len(slots.texts)))), "end") if slots.texts else set())
            room = SLOTS - len(slots.texts)
            if room and (not slots.texts or data.draw(st.booleans(), "begin some")):
                prefix = st.lists(token, max_size=CAPACITY - 8)
                slots.add(data.draw(st.lists(prefix, min_size=1, max_size=room), "prefixes"))
            count = len(slots.texts)
            logits = slots.step(data.draw(st.lists(token, min_size=count, max_size=count), "tokens"))
            for text, found in zip(slots.texts, logits, strict=True):
                alone = plain(torch.tensor([text]), use_cache=False).logits[0, -1]
                torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-4)
            assert slots.cache.lengths.tolist() == list(slots.cache.held) == [len(text) for text in slots.texts]

"""A tiny model that plain `generate` and ours continue."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from specgym.controllers.custom_generate import speculative_generate
from specgym.controllers.rules.phases import fixed_tree
from tests.support.tiny_models import noisy_copy
from tests.support.tiny_pair import tiny_chat_model


class Compared:
    """Plain `generate` and ours on the same request, in float64."""

    def __init__(self) -> None:
        self.model: PreTrainedModel = tiny_chat_model(dtype=torch.float64)
        self.draft = noisy_copy(self.model)
        self.prompt = torch.tensor([[40, 41, 40, 41, 40, 41, 40, 41]])

    def plain(self, **request: Any) -> Any:
        """The output of transformers alone."""
        inputs = {} if {"inputs", "inputs_embeds"} & request.keys() else {"inputs": self.prompt}
        return self.model.generate(**(inputs | {"max_new_tokens": 24, "do_sample": False} | request))

    def ours(self, **request: Any) -> Any:
        """Our output."""
        ours = {"custom_generate": speculative_generate, "draft": self.draft, "controller": fixed_tree(2, 3)}
        return self.plain(**(ours | request))

    def assert_same(self, **request: Any) -> Any:
        """Asserts that both give the same tokens, and returns them."""
        plain, ours = self.plain(**request), self.ours(**request)
        assert ours.tolist() == plain.tolist()
        return ours


@pytest.fixture(scope="session")
def compared() -> Compared:
    """The model is left by every test as it was found."""
    return Compared()

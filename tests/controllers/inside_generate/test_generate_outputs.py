"""Logits, scores, keys and values are those of `generate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specgym.env.common.errors import LimitError
from tests.controllers.inside_generate.conftest import Compared

WANTED = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}


@pytest.mark.parametrize(
    "request_of",
    [{}, {"eos_token_id": 46}, {"repetition_penalty": 1.4}, {"suppress_tokens": [69], "renormalize_logits": True}],
    ids=["plain", "ended", "penalty", "normalised"],
)
def test_logits_and_scores_are_those_of_generate(compared: Compared, request_of: dict[str, Any]) -> None:
    plain, ours = compared.plain(**WANTED, **request_of), compared.ours(**WANTED, **request_of)
    assert ours.sequences.tolist() == plain.sequences.tolist()
    for name in ("scores", "logits"):
        mine, right = (torch.stack(getattr(output, name)) for output in (ours, plain))
        assert mine.dtype == right.dtype
        assert torch.allclose(mine, right, atol=1e-4)


def test_only_what_is_wanted_is_returned(compared: Compared) -> None:
    output = compared.ours(return_dict_in_generate=True, output_logits=True)
    assert output.scores is None
    assert len(output.logits) == 24
    assert torch.is_tensor(compared.ours(output_scores=True)), "scores without a dictionary are asked for in vain"


@pytest.mark.parametrize("request_of", [{}, {"eos_token_id": 46}, {"max_new_tokens": 1}], ids=["all", "ended", "one"])
def test_keys_and_values_are_those_of_generate(compared: Compared, request_of: dict[str, Any]) -> None:
    request_of = request_of | {"return_dict_in_generate": True}
    plain, ours = (output.past_key_values for output in (compared.plain(**request_of), compared.ours(**request_of)))
    assert type(ours) is type(plain)
    for mine, right in zip(ours.layers, plain.layers, strict=True):
        assert torch.allclose(mine.keys, right.keys, atol=1e-5)
        assert torch.allclose(mine.values, right.values, atol=1e-5)
    assert compared.ours(return_dict_in_generate=True, use_cache=False).past_key_values is None


def test_a_cache_that_is_returned_can_be_trained_through_and_extended(compared: Compared) -> None:
    output = compared.ours(return_dict_in_generate=True)
    logits = compared.model(output.sequences[:, -1:], past_key_values=output.past_key_values).logits
    whole = compared.model(output.sequences).logits[:, -1:]
    assert torch.allclose(logits, whole, atol=1e-4)
    logits.sum().backward()
    compared.model.zero_grad()


def test_scores_of_several_texts_are_refused(compared: Compared) -> None:
    with pytest.raises(LimitError, match="one text with output_scores or output_logits; got 2"):
        compared.ours(inputs=compared.prompt.repeat(2, 1), **WANTED)
    output = compared.ours(inputs=compared.prompt.repeat(2, 1), return_dict_in_generate=True)
    assert output.past_key_values is None
    assert output.sequences[0].tolist() == output.sequences[1].tolist()

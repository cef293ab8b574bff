"""Answers that are written together are those of plain decoding, and come with what the target shows of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specgym.env.common.errors import LimitError, ParameterError
from specgym.env.drafts import LookupDraft
from specgym.env.models.fast.native_matrix import can_run
from specgym.env.models.target import TargetModel
from specgym.env.replay.recording.answers import Answer, write_answers
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings
from tests.support.architectures import WINDOW, kinds, tiny_model
from tests.support.tiny_models import generate, make_prompt, tiny_target

SAMPLED = SamplingSettings(1.0, seed=3)
PROMPTS = (make_prompt(1), make_prompt(2, 21), (5,), make_prompt(1), make_prompt(4, 13))
REQUESTS = [
    Request(prompt, length, settings)
    for prompt, length in zip(PROMPTS, (20, 9, 30, 14, 25), strict=True)
    for settings in (SamplingSettings(), SAMPLED)
]


def small_target(dtype: torch.dtype) -> TargetModel:
    return tiny_target(dtype=dtype, end_tokens=(4, 9), head_dim=32)


def written(target: TargetModel, slots: int) -> list[Answer]:
    return sorted(write_answers(target, REQUESTS, slots), key=lambda answer: answer.number)


def alone(target: TargetModel, request: Request) -> tuple[int, ...]:
    return (*request.prompt, *generate(target, LookupDraft(), request).tokens)


@pytest.mark.parametrize("slots", [1, 3, 10, 32])
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not can_run(32), reason="nothing is compiled")),
    ],
)
def test_answers_are_those_of_plain_decoding(dtype: torch.dtype, slots: int) -> None:
    target = small_target(dtype)
    answers = written(target, slots)
    assert [answer.number for answer in answers] == list(range(len(REQUESTS)))
    assert [answer.tokens for answer in answers] == [alone(target, request) for request in REQUESTS]
    lengths = {len(answer.tokens) - len(request.prompt) for answer, request in zip(answers, REQUESTS, strict=True)}
    assert len(lengths) > 4, "texts end at different times"
    assert all(answer.features is None for answer in answers)


@pytest.mark.parametrize("name", ["mistral", "llama4_text", "gpt_neo", "gpt_oss"])
def test_windows_look_back_along_each_text(name: str) -> None:
    target = TargetModel(tiny_model(kinds()[name]), frozenset({4}))
    answers = written(target, 10)
    assert [answer.tokens for answer in answers] == [alone(target, request) for request in REQUESTS]
    assert max(len(answer.tokens) for answer in answers) > 3 * WINDOW, "the test would be vacuous"


@pytest.mark.parametrize("slots", [1, 10])
@torch.inference_mode()
def test_states_are_those_of_the_text_read_at_once(slots: int) -> None:
    target = small_target(torch.float64)
    target.show_features((0,))
    for answer in written(target, slots):
        target.cache.reset()
        target.extend(answer.tokens[:-1])
        assert answer.features is not None
        assert target.features is not None
        torch.testing.assert_close(answer.features, target.features)


def test_a_prompt_of_several_requests_is_read_once() -> None:
    target = small_target(torch.float64)
    requests = [Request(make_prompt(1), 3, SamplingSettings(1.0, seed=seed), ignore_end=True) for seed in range(5)]
    told: list[int] = []
    texts = [answer.tokens for answer in write_answers(target, requests, progress=told.append)]
    assert len(set(texts)) > 1
    assert target.cache.length == len(make_prompt(1)) - 1 + 5 * 3
    assert told == [5, 5, 5]


def test_the_context_ends_a_text() -> None:
    target = small_target(torch.float64)
    request = Request(make_prompt(3), 500, ignore_end=True)
    (answer,) = write_answers(target, [request])
    assert answer.tokens == alone(target, request)
    assert len(answer.tokens) == target.context_limit


@torch.inference_mode()
def test_a_prompt_that_leaves_no_room_is_refused_before_any_work() -> None:
    target = small_target(torch.float64)
    target.extend(np.arange(3).tolist())
    with pytest.raises(LimitError):
        next(write_answers(target, [REQUESTS[0], Request((1,) * 128, 3)]))
    assert target.cache.length == 3


def test_logits_processors_are_refused() -> None:
    request = Request(make_prompt(1), 3, processors=(lambda input_ids, scores: scores,))
    with pytest.raises(ParameterError, match="without logits processors"):
        next(write_answers(small_target(torch.float64), [request]))

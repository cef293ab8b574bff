"""The exactness check accepts equal texts, and refuses texts that differ or were never compared."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import pytest
import torch

from specgym.controllers.evaluation.checks.lossless import (
    ExactnessCase,
    check_drafts,
    check_transformers,
    shallow_draft,
)
from specgym.controllers.registry import controller_names
from specgym.env.common.arrays import BoolArray, IntArray
from specgym.env.decoding.pair import encode_chat
from specgym.env.drafts import CausalDraft, Draft, LookupDraft
from specgym.env.models.target import CachedModel, TargetModel
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings
from tests.support.tiny_models import causal_draft, feature_draft, generate
from tests.support.tiny_pair import tiny_chat_model, tiny_tokenizer

TEXTS = ("hello world, hello", "Why is the sky blue?", "abc abc abc", "2 + 2 = 4")
PROMPTS = [encode_chat(tiny_tokenizer(), [text]) for text in TEXTS]
SPECULATING = [name for name in controller_names() if name != "autoregressive"]
EXACT = ExactnessCase("history", "causal", 0.0, 0, prompts=3, identical=3, drafted=10, accepted=4)


class SlippingTarget(TargetModel):
    """Chooses another token after every row of a tree; plain decoding is right."""

    def extend_tree(self, tokens: IntArray, positions: IntArray, visible: BoolArray) -> torch.Tensor:
        return super().extend_tree(tokens, positions, visible).roll(1, dims=-1)


class ForgetfulTarget(TargetModel):
    """Treats every row of a tree as a continuation of the row before, as if there were no branches."""

    def extend_tree(self, tokens: IntArray, positions: IntArray, visible: BoolArray) -> torch.Tensor:
        return super().extend_tree(tokens, positions, visible | True)


class SlippingPlainTarget(TargetModel):
    """Chooses another token in plain decoding."""

    def extend(self, tokens: Sequence[int]) -> torch.Tensor:
        return super().extend(tokens).roll(1, dims=-1)


def make_target(kind: type[TargetModel] = TargetModel) -> TargetModel:
    return kind(tiny_chat_model())


def check(target: TargetModel, *drafts: Draft, temperature: float = 0.0) -> list[ExactnessCase]:
    sampling = SamplingSettings(temperature, seed=3)
    return check_drafts(target, drafts, SPECULATING, [Request(prompt, 32, sampling) for prompt in PROMPTS])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_controller_and_draft_kind_is_exact(temperature: float) -> None:
    target = make_target()
    drafts = [causal_draft(target), feature_draft(target), shallow_draft(target, 1), LookupDraft()]
    cases = check(target, *drafts, temperature=temperature)
    assert [(case.runner, case.draft) for case in cases] == [
        (name, draft.kind) for draft in drafts for name in SPECULATING
    ]
    assert {(case.prompts, case.temperature, case.seed) for case in cases} == {(len(PROMPTS), temperature, 3)}
    assert [case for case in cases if not case.exact] == []


def test_plain_decoding_equals_transformers() -> None:
    target = make_target()
    case = check_transformers(target, LookupDraft(), PROMPTS, 24)
    assert case.exact
    assert (case.identical, case.prompts) == (len(PROMPTS), len(PROMPTS))


@pytest.mark.parametrize("kind", [SlippingTarget, ForgetfulTarget])
def test_a_target_that_verifies_wrongly_is_found_out(kind: type[TargetModel]) -> None:
    target = make_target(kind)
    cases = check(target, causal_draft(target))
    assert all(case.identical < case.prompts and not case.exact for case in cases)
    assert all(case.drafted for case in cases), "the test would be vacuous"


def test_a_plain_decoding_that_differs_from_transformers_is_found_out() -> None:
    case = check_transformers(make_target(SlippingPlainTarget), LookupDraft(), PROMPTS, 24)
    assert case.identical == 0
    assert not case.exact


@pytest.mark.parametrize(
    "change",
    [
        {"identical": 2},
        {"drafted": 0, "accepted": 0},
        {"accepted": 0},
        {"accepted": 10},
        {"prompts": 0, "identical": 0},
    ],
    ids=str,
)
def test_an_empty_or_unequal_comparison_is_not_exact(change: dict[str, int]) -> None:
    assert EXACT.exact, "the test would be vacuous"
    assert not dataclasses.replace(EXACT, **change).exact


def test_a_controller_that_never_drafts_is_not_called_exact() -> None:
    target = make_target()
    requests = [Request(prompt, 4) for prompt in PROMPTS]
    (case,) = check_drafts(target, [LookupDraft()], ["autoregressive"], requests)
    assert (case.identical, case.drafted) == (len(PROMPTS), 0)
    assert not case.exact


class TestShallowDraft:
    def test_it_is_the_first_layers_of_the_target(self) -> None:
        target = make_target()
        draft = shallow_draft(target, 1)
        cut = tiny_chat_model()
        cut.model.layers = cut.model.layers[:1]
        cut.config.num_hidden_layers = 1
        alone = CausalDraft(CachedModel(cut), target.vocabulary)
        request = Request(PROMPTS[0], 16)
        accounts = [generate(target, one, request, "fixed_tree") for one in (draft, alone)]
        assert accounts[0].accepted == accounts[1].accepted > 0
        assert accounts[0].rounds == accounts[1].rounds

    def test_it_shares_the_targets_weights(self) -> None:
        target = make_target()
        weights = {id(weight) for weight in target.model.parameters()}
        shared = [id(weight) in weights for weight in shallow_draft(target, 1).model.model.parameters()]
        assert shared
        assert all(shared)

    def test_it_leaves_the_target_as_it_was(self) -> None:
        target = make_target()
        request = Request(PROMPTS[0], 16)
        config = copy.deepcopy(target.model.config.to_dict())
        before = generate(target, LookupDraft(), request).tokens
        draft = shallow_draft(target, 1)
        generate(target, draft, request, "fixed_tree")
        assert target.model.config.to_dict() == config
        assert len(target.model.model.layers) == config["num_hidden_layers"] == 2
        assert generate(target, LookupDraft(), request).tokens == before

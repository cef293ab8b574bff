"""Inside transformers: the text that `generate` would have given, cut where it would have cut it, or a refusal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList, StopStringCriteria
from transformers.generation import GenerateDecoderOnlyOutput

from specgym.controllers.custom_generate import speculative_generate
from specgym.controllers.rules.phases import fixed_tree
from specgym.env.common.errors import LimitError, ModelFileError, PairError, ParameterError, UnknownNameError
from specgym.env.drafts import Draft, LookupDraft
from specgym.env.drafts.network import save_network
from specgym.env.models.target import TargetModel
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings
from tests.support.tiny_models import causal_draft, generate, noisy_copy, tiny_llama, tiny_network
from tests.support.tiny_pair import CONTEXT, END, VOCABULARY, tiny_chat_model, tiny_tokenizer

INPUTS = tiny_tokenizer()("Say it again: ha ha ha ha", return_tensors="pt")
PROMPT = INPUTS["input_ids"][0].tolist()
TOKENS = 24
TREE = fixed_tree(branch=2, depth=3)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_chat_model(dtype=torch.float64)


@pytest.fixture(scope="module")
def draft(model: PreTrainedModel) -> PreTrainedModel:
    return noisy_copy(model)


@pytest.fixture(autouse=True)
def _both_are_given_back(model: PreTrainedModel, draft: PreTrainedModel) -> Iterator[None]:
    """Whatever a test does, refusals included, the models are afterwards as they were."""
    before = [_state(each) for each in (model, draft)]
    yield
    assert [_state(each) for each in (model, draft)] == before


def _state(model: PreTrainedModel) -> list[object]:
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return [model.config._attn_implementation, model.training, sum(hooks)]


def ask(model: PreTrainedModel, **options: Any) -> list[int]:
    """The new tokens of `generate`."""
    output = model.generate(**(INPUTS | {"max_new_tokens": TOKENS} | options))
    assert output[0, : len(PROMPT)].tolist() == PROMPT
    return output[0, len(PROMPT) :].tolist()


def speculate(model: PreTrainedModel, **options: Any) -> list[int]:
    return ask(model, custom_generate=speculative_generate, **options)


def plain(model: PreTrainedModel, sampling: SamplingSettings) -> list[int]:
    """The new tokens of plain decoding in the engine."""
    target = TargetModel(model, frozenset({END}))
    return generate(target, LookupDraft(), Request(tuple(PROMPT), TOKENS, sampling)).tokens


def make_draft(
    kind: str, model: PreTrainedModel, draft: PreTrainedModel, folder: Path
) -> str | PreTrainedModel | Draft:
    if kind == "feature draft":
        path = folder / "draft.safetensors"
        save_network(tiny_network(vocabulary=VOCABULARY), path, {})
        return str(path)
    if kind == "draft object":
        return causal_draft(TargetModel(model))
    return draft if kind == "causal model" else kind


class TestText:
    @pytest.mark.parametrize("kind", ["lookup", "causal model", "feature draft", "draft object"])
    @pytest.mark.parametrize(
        "controller", ["history", "fixed_tree:branch=3:depth=3", TREE], ids=["history", "fixed tree", "an object"]
    )
    def test_greedy_text_is_that_of_generate(
        self, model: PreTrainedModel, draft: PreTrainedModel, tmp_path: Path, kind: str, controller: Any
    ) -> None:
        rounds: list[Sequence[int]] = []
        chosen = make_draft(kind, model, draft, tmp_path)
        made = speculate(model, draft=chosen, controller=controller, on_tokens=rounds.append)
        assert made == ask(model)
        if kind in ("causal model", "draft object"):
            assert len(rounds) < len(made), "nothing was accepted: the test would be vacuous"

    def test_the_model_may_be_its_own_draft(self, model: PreTrainedModel) -> None:
        assert speculate(model, draft=model) == ask(model)

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize(
        ("options", "ours"),
        [
            ({}, {"top_k": 50}),  # transformers' default
            ({"top_k": 0}, {}),
            ({"temperature": 0.7, "top_k": 5, "top_p": 0.8}, {"temperature": 0.7, "top_k": 5, "top_p": 0.8}),
        ],
        ids=["default", "all tokens", "all settings"],
    )
    def test_sampled_text_is_that_of_plain_decoding_with_the_same_seed(
        self,
        model: PreTrainedModel,
        draft: PreTrainedModel,
        seed: int,
        options: dict[str, Any],
        ours: dict[str, Any],
    ) -> None:
        expected = plain(model, SamplingSettings(**({"temperature": 1.0, "seed": seed} | ours)))
        assert speculate(model, draft=draft, do_sample=True, seed=seed, **options) == expected

    def test_top_k_decides_some_of_these_texts(self, model: PreTrainedModel) -> None:
        cut, uncut = ([plain(model, SamplingSettings(2.0, top_k, seed=seed)) for seed in range(3)] for top_k in (50, 0))
        assert cut != uncut, "the test above would be vacuous"

    def test_sampling_follows_torchs_seed(self, model: PreTrainedModel, draft: PreTrainedModel) -> None:
        texts = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            texts.append([speculate(model, draft=draft, do_sample=True) for _ in range(2)])
        assert texts[0] == texts[1] != texts[2]
        assert texts[0][0] != texts[0][1], "two calls in a row shall not give the same sample"

    def test_the_output_comes_as_a_dictionary_if_wanted(self, model: PreTrainedModel) -> None:
        output = model.generate(
            **INPUTS, max_new_tokens=TOKENS, custom_generate=speculative_generate, return_dict_in_generate=True
        )
        assert isinstance(output, GenerateDecoderOnlyOutput)
        assert output.sequences[0].tolist() == PROMPT + ask(model)


class _Length(StoppingCriteria):  # type: ignore[misc]  # transformers is not typed
    """Stops at `length` tokens, prompt included."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.tensor([len(row) >= self.length for row in input_ids])


class TestEnd:
    @settings(max_examples=25)
    @given(st.integers(1, TOKENS), st.data())
    def test_every_limit_is_kept_exactly(
        self, model: PreTrainedModel, draft: PreTrainedModel, tokens: int, data: st.DataObject
    ) -> None:
        name = data.draw(st.sampled_from(["max_new_tokens", "max_length"]))
        limit = tokens if name == "max_new_tokens" else len(PROMPT) + tokens
        limits = {"max_new_tokens": None} | {name: limit}
        made = speculate(model, draft=draft, controller=TREE, **limits)
        assert len(made) == tokens
        assert made == ask(model, **limits)

    @settings(max_examples=25)
    @given(st.lists(st.integers(0, TOKENS - 1), min_size=1, max_size=3))
    def test_end_tokens_end_the_text_where_generate_does(
        self, model: PreTrainedModel, draft: PreTrainedModel, where: list[int]
    ) -> None:
        text = ask(model)
        ends = [text[index] for index in where]
        made = speculate(model, draft=draft, controller=TREE, eos_token_id=ends)
        assert made == ask(model, eos_token_id=ends)
        assert made[-1] in ends

    @settings(max_examples=25)
    @given(st.integers(1, TOKENS), st.integers(0, TOKENS - 2))
    def test_stopping_criteria_cut_where_generate_does(
        self, model: PreTrainedModel, draft: PreTrainedModel, length: int, start: int
    ) -> None:
        tokenizer = tiny_tokenizer()
        stop = tokenizer.decode(ask(model)[start : start + 2])
        texts = []
        rounds: list[Sequence[int]] = []
        for ours in ({}, {"custom_generate": speculative_generate, "draft": draft, "on_tokens": rounds.append}):
            criteria = StoppingCriteriaList([_Length(len(PROMPT) + length), StopStringCriteria(tokenizer, [stop])])
            texts.append(ask(model, stopping_criteria=criteria, **ours))
        assert texts[0] == texts[1]
        assert len(texts[1]) <= length
        assert list(chain.from_iterable(rounds)) == texts[1], "what was cut off must not be streamed"

    def test_the_context_ends_the_text(self, model: PreTrainedModel, draft: PreTrainedModel) -> None:
        prompt = torch.full((1, CONTEXT - 3), 9)
        with pytest.warns(UserWarning, match=f"ends at {CONTEXT} tokens, the target's context. 7 more were allowed"):
            made = model.generate(prompt, max_new_tokens=10, custom_generate=speculative_generate, draft=draft)
        assert made.shape[1] == CONTEXT
        assert made.equal(model.generate(prompt, max_new_tokens=3))

    def test_rounds_are_handed_on_as_they_come(self, model: PreTrainedModel, draft: PreTrainedModel) -> None:
        rounds: list[Sequence[int]] = []
        made = speculate(model, draft=draft, controller=TREE, on_tokens=rounds.append)
        assert list(chain.from_iterable(rounds)) == made
        assert 1 < len(rounds) < len(made)
        assert max(map(len, rounds)) > 1

    def test_an_error_of_the_listener_comes_through(self, model: PreTrainedModel, draft: PreTrainedModel) -> None:
        def listen(tokens: Sequence[int]) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            speculate(model, draft=draft, on_tokens=listen)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"draft": "nowhere.safetensors"}, ModelFileError, "nowhere.safetensors; there is no such file"),
            ({"draft": 3}, ParameterError, "Expected draft to be 'lookup'"),
            ({"controller": "histori"}, UnknownNameError, "Did you mean history"),
            ({"controller": None}, ParameterError, "Expected controller to be a name"),
            ({"seed": 1.5}, ParameterError, "Expected seed to be an integer; got 1.5"),
            ({"on_tokens": 3}, ParameterError, "Expected on_tokens to be a function"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_our_own_arguments_are_checked(
        self, model: PreTrainedModel, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            speculate(model, **options)

    def test_a_prompt_that_fills_the_context_is_refused(self, model: PreTrainedModel) -> None:
        with pytest.raises(LimitError, match=f"has {CONTEXT} tokens; this target reads at most {CONTEXT}"):
            model.generate(torch.full((1, CONTEXT), 9), custom_generate=speculative_generate, max_new_tokens=4)

    def test_a_feature_draft_of_another_width_is_refused(self, model: PreTrainedModel, tmp_path: Path) -> None:
        save_network(tiny_network(hidden_size=16), tmp_path / "narrow.safetensors", {})
        with pytest.raises(PairError, match="expects hidden states of 16 numbers"):
            speculate(model, draft=str(tmp_path / "narrow.safetensors"))

    def test_a_draft_that_cannot_branch_is_refused(self, model: PreTrainedModel) -> None:
        alibi = tiny_llama()
        alibi.config.alibi = True
        with pytest.raises(PairError, match="ALiBi"):
            speculate(model, draft=alibi)

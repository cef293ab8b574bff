"""Logits processors: whatever transformers or a user brings, a tree gives the text of plain decoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from specgym.controllers.run import Generation
from specgym.env.common.errors import NumericalError, ParameterError
from specgym.env.models.target import TargetModel
from specgym.env.tree.processors import Processor
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings, TokenChooser
from specgym.env.tree.tree import TokenTree
from tests.support.tiny_models import VOCABULARY, causal_draft, generate, make_draft, make_prompt, tiny_llama

END, RARE, TOKENS = 9, 29, 48  # two tokens: one that plain text has, and one that it has not
PROMPT = make_prompt(2, 10)
CPU = torch.device("cpu")
CHAIN = "fixed_tree:branch=1:depth=4"
TREE = "fixed_tree:branch=2:depth=4"
SAMPLED = SamplingSettings(1.0, seed=3)


@cache
def model() -> PreTrainedModel:
    return tiny_llama(3, torch.float32)


def keep_processors(**options: Any) -> tuple[Processor, ...]:
    """The processors that `generate` makes of its options."""
    kept: list[Processor] = []

    def keep(model: Any, input_ids: Any, logits_processor: LogitsProcessorList, **others: Any) -> torch.Tensor:
        kept.extend(logits_processor)
        return torch.empty(0)

    model().generate(torch.tensor([PROMPT]), custom_generate=keep, **_common(options))
    return tuple(kept)


def plain(**options: Any) -> list[int]:
    """The text of `generate` itself."""
    text: list[int] = model().generate(torch.tensor([PROMPT]), **_common(options))[0].tolist()
    return text[len(PROMPT) :]


def _common(options: dict[str, Any]) -> dict[str, Any]:
    mask = torch.ones(1, len(PROMPT), dtype=torch.long)
    return {"attention_mask": mask, "max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0} | options


def speculate(
    processors: tuple[Processor, ...],
    *,
    ends: tuple[int, ...] = (),
    kind: str = "causal",
    controller: str = TREE,
    sampling: SamplingSettings | None = None,
) -> Generation:
    target = TargetModel(model(), frozenset(ends))
    request = Request(PROMPT, TOKENS, sampling or SamplingSettings(), processors=processors)
    return generate(target, make_draft(kind, target), request, controller)


def check_not_vacuous(text: Generation) -> None:
    assert 0.05 < text.accepted / len(text.tokens) < 0.95, "the test would be vacuous"


OPTIONS: dict[str, dict[str, Any]] = {
    "repetition penalty": {"repetition_penalty": 1.3},
    "n-grams": {"no_repeat_ngram_size": 3},
    "penalty and n-grams": {"repetition_penalty": 1.1, "no_repeat_ngram_size": 2},
    "n-grams of the prompt": {"encoder_no_repeat_ngram_size": 1},
    "penalty outside of the prompt": {"encoder_repetition_penalty": 1.5},
    "bad words": {"bad_words_ids": [[20], [5, 6], [11, 3]]},
    "biased sequences": {"sequence_bias": {(4,): 3.0, (7, 2): -5.0}},
    "suppressed tokens": {"suppress_tokens": [3, 4, 20]},
    "suppressed at the beginning": {"begin_suppress_tokens": [*range(1, 31, 2)]},
    "minimum length": {"min_length": 40, "eos_token_id": END},
    "minimum of new tokens": {"min_new_tokens": 25, "eos_token_id": [END, 4]},
    "forced end": {"forced_eos_token_id": RARE, "eos_token_id": RARE},
    "decaying length": {"exponential_decay_length_penalty": (10, 1.2), "eos_token_id": RARE},
    "invalid values": {"remove_invalid_values": True, "repetition_penalty": 1.2},
    "normalised": {"renormalize_logits": True, "repetition_penalty": 1.2},
    "allowed by prefix": {"prefix_allowed_tokens_fn": lambda batch, text: [int(text[-1]) // 2, *range(1, 31, 3)]},
}


class TestOfTransformers:
    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
    def test_greedy_text_is_that_of_generate(self, options: dict[str, Any]) -> None:
        ends = options.get("eos_token_id", ())
        made = speculate(keep_processors(**options), ends=(ends,) if isinstance(ends, int) else tuple(ends))
        assert made.tokens == plain(**options)
        check_not_vacuous(made)

    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
    def test_each_of_them_decides_something(self, options: dict[str, Any]) -> None:
        ends = {"eos_token_id": options.get("eos_token_id")}
        if "renormalize_logits" not in options:
            assert plain(**options) != plain(**ends), "the test above would be vacuous"

    @pytest.mark.parametrize("kind", ["causal", "feature"])
    def test_sampled_text_is_that_of_plain_decoding_with_the_same_seed(self, kind: str) -> None:
        options = {"repetition_penalty": 1.2, "no_repeat_ngram_size": 4, "temperature": 0.7, "top_k": 12, "min_p": 0.02}
        processors = keep_processors(do_sample=True, **options)
        made = speculate(processors, kind=kind, sampling=SAMPLED)
        assert made.tokens == speculate(processors, sampling=SAMPLED, controller="autoregressive").tokens
        assert made.tokens != speculate((), sampling=SAMPLED).tokens
        assert made.accepted

    def test_a_watermark_is_that_of_generate(self) -> None:
        from transformers import WatermarkingConfig

        options = {"watermarking_config": WatermarkingConfig(bias=1.5, context_width=1)}
        made = speculate(keep_processors(**options))
        assert made.tokens == plain(**options) != plain()
        check_not_vacuous(made)

    def test_guidance_is_refused_by_name(self) -> None:
        guidance = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, model())
        with pytest.raises(ParameterError, match="guidance_scale"):
            Request(PROMPT, processors=(guidance,))


class _Calls(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed
    """Favours a token that depends on the number of calls, and keeps what it is given."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert scores.dtype == torch.float32
        assert scores.shape == (1, VOCABULARY)
        self.calls.append(input_ids[0].tolist())
        return scores.index_add(1, torch.tensor([len(self.calls) * 7 % VOCABULARY]), torch.full((1, 1), 1.0))


class _Ban(TopKLogitsWarper):  # type: ignore[misc]
    """A subclass of a known warper that does something else."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(torch.arange(VOCABULARY) % 3 == input_ids[0, -1] % 3, -torch.inf)


class _InPlace(LogitsProcessor):  # type: ignore[misc]
    """Changes the scores that it is given."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, input_ids.shape[1] % 5 :: 5] -= 3
        return scores


class _Gradient(LogitsProcessor):  # type: ignore[misc]
    """Follows a gradient, for which tensors must be ordinary ones."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            moved = scores.requires_grad_()
            (slope,) = torch.autograd.grad((moved.softmax(-1) * torch.arange(VOCABULARY)).sum(), moved)
        return moved.detach() + slope


def _without_last(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return scores.scatter(1, input_ids[:, -4:], -torch.inf)


OWN: dict[str, Callable[[], list[Processor]]] = {
    "calls": lambda: [_Calls()],
    "subclass": lambda: [_Ban(1)],
    "in place": lambda: [_InPlace(), RepetitionPenaltyLogitsProcessor(1.2)],
    "gradient": lambda: [_Gradient()],
    "function": lambda: [_without_last],
    "order": lambda: [TemperatureLogitsWarper(3.0), RepetitionPenaltyLogitsProcessor(1.4), _Calls()],
}


class TestOfUsers:
    @pytest.mark.parametrize("make", OWN.values(), ids=OWN.keys())
    def test_greedy_text_is_that_of_generate(self, make: Callable[[], list[Processor]]) -> None:
        made = speculate(tuple(make()))
        assert made.tokens == plain(logits_processor=LogitsProcessorList(make())) != plain()
        check_not_vacuous(made)

    def test_each_token_is_processed_once_and_in_order(self) -> None:
        ours, theirs = _Calls(), _Calls()
        made = speculate((ours,), ends=(END,))
        plain(logits_processor=LogitsProcessorList([theirs]), eos_token_id=END)
        assert ours.calls == theirs.calls == [[*PROMPT, *made.tokens[:count]] for count in range(len(made.tokens))]

    @pytest.mark.parametrize("make", OWN.values(), ids=OWN.keys())
    def test_sampled_text_is_that_of_plain_decoding(self, make: Callable[[], list[Processor]]) -> None:
        made = speculate(tuple(make()), sampling=SAMPLED)
        assert made.tokens == speculate(tuple(make()), sampling=SAMPLED, controller="autoregressive").tokens
        assert made.accepted

    def test_known_warpers_keep_their_order_and_their_options(self) -> None:
        warpers = (TopPLogitsWarper(0.2, min_tokens_to_keep=3), TemperatureLogitsWarper(2.0), TopKLogitsWarper(4))
        made = speculate(warpers, sampling=SAMPLED)
        assert made.tokens == speculate((*warpers, _pass_on), sampling=SAMPLED, controller="autoregressive").tokens
        assert made.tokens != speculate(warpers[:1], sampling=SAMPLED).tokens

    def test_scores_may_be_infinite_where_a_token_is_forced(self) -> None:
        def force(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores.masked_fill(torch.arange(VOCABULARY) == (input_ids[0, -1] + 1) % VOCABULARY, torch.inf)

        assert speculate((force,)).tokens == plain(logits_processor=LogitsProcessorList([force]))

    @pytest.mark.parametrize("sampling", [SamplingSettings(), SAMPLED], ids=["greedy", "sampled"])
    @pytest.mark.parametrize("value", [-torch.inf, torch.nan])
    def test_processors_that_leave_no_token_are_named(self, sampling: SamplingSettings, value: float) -> None:
        def forbid(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return torch.full_like(scores, value)

        with pytest.raises(NumericalError, match=r"logits processors .*NoBadWordsLogitsProcessor, forbid"):
            speculate((NoBadWordsLogitsProcessor([[1]]), forbid), sampling=sampling)

    def test_scores_of_another_shape_are_refused(self) -> None:
        with pytest.raises(ParameterError, match=r"return \[1, 31\]; got \[31\]"):
            speculate((lambda input_ids, scores: scores[0],))

    @pytest.mark.parametrize("setting", [{"temperature": 0.5}, {"temperature": 1.0, "top_k": 3}, {"top_p": 0.5}])
    def test_settings_beside_processors_are_refused(self, setting: dict[str, float]) -> None:
        with pytest.raises(ParameterError, match="beside processors"):
            Request(PROMPT, sampling=replace(SamplingSettings(), **setting), processors=(_pass_on,))


def _pass_on(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return scores


class TestOfDrafts:
    def test_a_penalty_helps_a_draft_to_propose_what_the_target_chooses(self) -> None:
        accepted = []
        for seed in range(3):
            target, penalty = TargetModel(tiny_llama(seed, torch.float32)), RepetitionPenaltyLogitsProcessor(1.6)
            for processor in (penalty, partial(penalty)):  # a draft knows the type, and not the function
                request = Request(PROMPT, TOKENS, processors=(processor,))
                accepted.append(generate(target, causal_draft(target, 0.02), request, CHAIN).accepted)
        assert sum(accepted[::2]) > 1.1 * sum(accepted[1::2])

    @pytest.mark.parametrize("trimmed", [False, True])
    @pytest.mark.parametrize("height", [0.0, -30.0, 12.0])
    def test_rows_of_a_draft_are_penalised_for_their_own_paths(self, trimmed: bool, height: float) -> None:
        penalty = RepetitionPenaltyLogitsProcessor(1.7)
        chooser = TokenChooser(SamplingSettings(), VOCABULARY, CPU, (penalty,), PROMPT)
        logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(5)) * 4
        chooser.choose(logits[:1], [10])
        tree = TokenTree(PROMPT[-1])
        tree.add(np.zeros(2, np.int64), np.array([3, 28]), np.zeros(2))
        deepest = tree.add(np.array([1, 2, 2]), np.array([17, 3, 5]), np.zeros(3))
        token_ids = torch.arange(VOCABULARY - 1, -1, -2) if trimmed else None
        drafted = logits if token_ids is None else logits[:, token_ids]
        ranked = chooser.rank(drafted + height, [12] * 3, 5, token_ids, branch=(tree, deepest))
        for row, path in enumerate([(3, 17), (28, 3), (28, 5)]):
            lift = logits[0].max() - drafted[row].max()
            scores = penalty(torch.tensor([[*PROMPT, *path]]), logits[row : row + 1] + lift)[0]
            known = torch.arange(VOCABULARY) if token_ids is None else token_ids
            assert ranked.tokens[row].tolist() == known[scores[known].topk(5).indices].tolist()

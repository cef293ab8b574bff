"""Runners continue texts as the target would, and end where it must."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from specgym.controllers.evaluation.live.paired_runs import SUITES
from specgym.controllers.evaluation.live.runners import (
    TransformersRunner,
    check_runner,
    make_runner,
)
from specgym.controllers.registry import BASELINE
from specgym.env.common.errors import UnknownNameError
from specgym.env.decoding.pair import ModelPair, encode_chat
from specgym.env.tree.rounds import FinishReason, Request
from specgym.env.tree.sampling import SamplingSettings
from tests.support.tiny_pair import CONTEXT

TOKENS = 12


class TestTransformersRunner:
    @pytest.mark.parametrize("text", ["hello", "2 + 2 = ", "abc abc abc"])
    def test_its_greedy_text_is_that_of_plain_decoding(self, pair: ModelPair, text: str) -> None:
        request = Request(encode_chat(pair.tokenizer, [text]), 32)
        reference = TransformersRunner(pair.target)(request)
        plain = make_runner(BASELINE, pair.decoder())(request)
        assert reference.tokens == plain.tokens
        assert (reference.finished, reference.rounds) == (plain.finished, plain.rounds)

    @pytest.mark.parametrize(
        "settings",
        [
            {"repetition_penalty": 1.3},
            {"no_repeat_ngram_size": 2, "suppress_tokens": [40]},
            {"num_beams": 3},
            {"min_new_tokens": 30},
            {"max_time": 1e-6},
            {"stop_strings": ["a"]},
            {"guidance_scale": 3.0},
            {"return_dict_in_generate": True, "output_scores": True},
            {"cache_implementation": "static"},
            {"prompt_lookup_num_tokens": 3},
            {"do_sample": True, "temperature": 3.0},
            {"bad_words_ids": [[41]], "eos_token_id": [50, 60]},
        ],
        ids="-".join,
    )
    def test_the_models_own_settings_change_nothing(self, pair: ModelPair, settings: dict[str, Any]) -> None:
        request = Request(encode_chat(pair.tokenizer, ["hello"]), 32)
        expected = TransformersRunner(pair.target)(request).tokens
        config = pair.target.model.generation_config
        pair.target.model.generation_config = changed = copy.deepcopy(config)
        vars(changed).update(settings)
        try:
            assert TransformersRunner(pair.target)(request).tokens == expected
            assert pair.target.model.generation_config is changed, "it is given back"
        finally:
            pair.target.model.generation_config = config

    def test_it_goes_on_after_the_end_if_asked(self, pair: ModelPair) -> None:
        request = Request(encode_chat(pair.tokenizer, ["hello"]), 64, ignore_end=True)
        assert TransformersRunner(pair.target)(request).tokens == make_runner(BASELINE, pair.decoder())(request).tokens

    def test_it_gives_the_target_back_as_the_engine_needs_it(self, pair: ModelPair) -> None:
        decoder = pair.decoder()
        request = Request(encode_chat(pair.tokenizer, ["hello"]), TOKENS)
        before = make_runner("history", decoder)(request).tokens
        TransformersRunner(pair.target)(request)
        assert make_runner("history", decoder)(request).tokens == before

    @pytest.mark.parametrize(
        ("prompt", "reason"),
        [((9,) * (CONTEXT - 3), FinishReason.CONTEXT_LIMIT), ((9, 10), FinishReason.TOKEN_LIMIT)],
        ids=["context", "limit"],
    )
    def test_it_ends_where_plain_decoding_ends(
        self, pair: ModelPair, prompt: tuple[int, ...], reason: FinishReason
    ) -> None:
        request = Request(prompt, TOKENS)
        reference = TransformersRunner(pair.target)(request)
        plain = make_runner(BASELINE, pair.decoder())(request)
        assert reference.tokens == plain.tokens
        assert reference.finished is plain.finished is reason

    def test_it_samples_with_the_requests_seed(self, pair: ModelPair) -> None:
        runner = TransformersRunner(pair.target)
        texts = [
            runner(Request(encode_chat(pair.tokenizer, ["hello"]), TOKENS, SamplingSettings(1.0, seed=seed))).tokens
            for seed in (1, 1, 2)
        ]
        assert texts[0] == texts[1] != texts[2]


class TestNames:
    def test_the_suites_compare_what_the_plan_names(self) -> None:
        assert SUITES == {
            "phase1": ("autoregressive", "fixed_tree", "confidence"),
            "phase2": ("autoregressive", "confidence", "dynamic_depth"),
            "full": (
                "transformers",
                "autoregressive",
                "fixed_tree",
                "confidence",
                "dynamic_depth",
                "history",
                "goodput",
            ),
        }
        for name in {name for names in SUITES.values() for name in names}:
            check_runner(name)

    @pytest.mark.parametrize(("name", "close"), [("histroy", "history"), ("transformer", "transformers")])
    def test_an_unknown_runner_is_answered_with_the_closest_name(self, name: str, close: str) -> None:
        with pytest.raises(UnknownNameError, match=f"Unknown controller '{name}'. Did you mean {close}"):
            check_runner(name)

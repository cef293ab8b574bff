"""Every field, argument and method of a request is used, changes no token, or is refused by name."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, GenerationConfig, LlavaConfig, LlavaForConditionalGeneration

from specgym.controllers.inside_generate.request_account import check_positions, check_request
from specgym.env.common.errors import ParameterError
from tests.controllers.inside_generate.conftest import Compared
from tests.support.tiny_models import tiny_llama

_VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8}


class TestUsed:
    @pytest.mark.parametrize(
        "request_of",
        [
            {"repetition_penalty": 1.3},
            {"no_repeat_ngram_size": 2},
            {"encoder_repetition_penalty": 1.5},
            {"bad_words_ids": [[69], [46, 72]]},
            {"suppress_tokens": [69, 38]},
            {"begin_suppress_tokens": [69]},
            {"sequence_bias": [[[69], -5.0]]},
            {"forced_eos_token_id": 7},
            {"min_new_tokens": 20},
            {"min_length": 20},
            {"exponential_decay_length_penalty": (4, 1.5)},
            {"renormalize_logits": True},
            {"remove_invalid_values": True},
            {"prefix_allowed_tokens_fn": lambda batch, text: [30 + batch, 40, int(text[-1]) // 2 + 30]},
            {"watermarking_config": {"greenlist_ratio": 0.3, "bias": 3.0, "seeding_scheme": "selfhash"}},
        ],
        ids=lambda request: next(iter(request)),
    )
    def test_what_changes_the_text_changes_ours_alike(self, compared: Compared, request_of: dict[str, Any]) -> None:
        compared.assert_same(**request_of)

    def test_most_of_these_change_the_text(self, compared: Compared) -> None:
        plain = compared.plain().tolist()
        assert compared.plain(repetition_penalty=1.3).tolist() != plain, "the test above would be vacuous"
        assert compared.plain(suppress_tokens=[69, 38]).tolist() != plain, "the test above would be vacuous"

    @pytest.mark.parametrize(
        "request_of",
        [
            {"use_cache": False},
            {"cache_implementation": "static", "disable_compile": True},
            {"prefill_chunk_size": 3},
            {"length_penalty": 2.0},
            {"num_assistant_tokens": 3},
            {"guidance_scale": 1.0},
            {"top_k": 7},
            {"output_hidden_states": True},
            {"logits_to_keep": 3},
            {"position_ids": torch.arange(8)[None]},
            {"num_beams": 1, "penalty_alpha": 0.0},
        ],
        ids=lambda request: next(iter(request)),
    )
    def test_what_changes_no_token_is_taken(self, compared: Compared, request_of: dict[str, Any]) -> None:
        assert compared.ours(**request_of).tolist() == compared.plain().tolist()

    def test_fields_that_only_the_models_file_has_are_ignored_as_in_generate(self, compared: Compared) -> None:
        compared.model.generation_config.chat_format = "chatml"
        try:
            compared.assert_same()
        finally:
            del compared.model.generation_config.chat_format


class TestRefused:
    @pytest.mark.parametrize(
        "request_of",
        [
            {"num_beams": 3},
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
            {"penalty_alpha": 0.6, "top_k": 4},
            {"dola_layers": "low"},
            {"prompt_lookup_num_tokens": 3},
            {"assistant_early_exit": 1},
            {"constraints": ["any"]},
            {"force_words_ids": [[3]]},
            {"guidance_scale": 3.0},
            {"use_mtp": True},
            {"synced_gpus": True},
            {"output_hidden_states": True, "return_dict_in_generate": True},
            {"output_attentions": True, "return_dict_in_generate": True},
            {"inputs_embeds": torch.ones(1, 4, 32, dtype=torch.float64)},
            {"output_router_logits": True},
            {"position_ids": torch.arange(8)[None] + 2},
        ],
        ids=lambda request: next(iter(request)),
    )
    def test_what_no_path_can_answer_is_refused_before_a_forward(
        self, compared: Compared, request_of: dict[str, Any]
    ) -> None:
        forwards: list[object] = []
        hook = compared.model.register_forward_pre_hook(lambda *_: forwards.append(1))
        try:
            with pytest.raises(ParameterError, match=next(iter(request_of))):
                compared.ours(**request_of)
        finally:
            hook.remove()
        assert not forwards

    def test_a_field_that_a_later_transformers_adds_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        init = GenerationConfig.__init__

        def later(self: GenerationConfig, **fields: Any) -> None:
            init(self, **fields)
            self.think_twice = None

        monkeypatch.setattr(GenerationConfig, "__init__", later)
        config = GenerationConfig()
        check_request(tiny_llama(), config, {}, 1)
        config.think_twice = 0.5
        with pytest.raises(ParameterError, match=r"think_twice=0\.5"):
            check_request(tiny_llama(), config, {}, 1)

    def test_a_cache_that_rounds_is_refused(self) -> None:
        with pytest.raises(ParameterError, match="cache_implementation='quantized'"):
            check_request(tiny_llama(), GenerationConfig(cache_implementation="quantized"), {}, 1)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("pixel_values", torch.ones(1, 3, 4, 4)),
            ("token_type_ids", torch.zeros(1, 4)),
            ("mm_encoder_outputs", {"image": torch.ones(1)}),
            ("others", 3),
            ("some_new_argument", True),
        ],
    )
    def test_arguments_for_the_model_are_refused_by_name(self, name: str, value: object) -> None:
        with pytest.raises(ParameterError, match=name):
            check_request(tiny_llama(), GenerationConfig(), {name: value}, 1)

    def test_arguments_that_hold_nothing_are_taken(self) -> None:
        check_request(tiny_llama(), GenerationConfig(), {"pixel_values": None, "mm_encoder_outputs": {}}, 1)

    def test_types_of_tokens_that_all_are_text_are_taken_by_a_model_of_text_and_images(self) -> None:
        config = LlavaConfig(vision_config=CLIPVisionConfig(**_VISION), text_config=tiny_llama().config)
        model, text, image = LlavaForConditionalGeneration(config), torch.zeros(1, 4), torch.ones(1, 4)
        for name in ("token_type_ids", "mm_token_type_ids"):
            check_request(model, GenerationConfig(), {name: text}, 1)
            for refused, types in ((model, image), (tiny_llama(), text)):
                with pytest.raises(ParameterError, match=name):
                    check_request(refused, GenerationConfig(), {name: types}, 1)

    @pytest.mark.parametrize("replaced", ["prepare_inputs_for_generation", "_update_model_kwargs_for_generation"])
    @pytest.mark.parametrize("where", ["object", "class", "wrapped"])
    def test_a_model_with_inputs_of_its_own_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, replaced: str, where: str
    ) -> None:
        model = tiny_llama()
        own = getattr(model, replaced)
        if where == "object":
            monkeypatch.setattr(model, replaced, lambda *a, **k: {**own(*a, **k)}, raising=False)
        elif where == "wrapped":
            monkeypatch.setattr(model, replaced, functools.wraps(own)(lambda *a, **k: {**own(*a, **k)}), raising=False)
        else:
            model.__class__ = type("Mine", (type(model),), {replaced: lambda self, *a, **k: own(*a, **k)})
        with pytest.raises(ParameterError, match=replaced):
            check_request(model, GenerationConfig(), {}, 1)

    @pytest.mark.parametrize(("name", "texts"), [("alora_offsets", 1), ("adapter_names", 2)])
    def test_adapters_for_some_rows_are_refused(self, name: str, texts: int) -> None:
        """Some adapters are for a part of the text, or for one text of a batch. Hooks hand these on to layers."""
        model = tiny_llama()
        hook = functools.partial(lambda *arguments, **_: arguments[1:], **{name: [3] * texts})
        model.model.layers[1].self_attn.q_proj.register_forward_pre_hook(hook)
        with pytest.raises(ParameterError, match=name):
            check_request(model, GenerationConfig(), {}, texts)
        check_request(tiny_llama(), GenerationConfig(), {}, texts)

    def test_a_method_that_was_put_back_is_taken(self) -> None:
        model = tiny_llama()
        model.prepare_inputs_for_generation = model.prepare_inputs_for_generation  # as some adapters leave it
        check_request(model, GenerationConfig(), {}, 1)

    def test_three_dimensional_positions_of_plain_text_are_taken(self) -> None:
        visible = torch.ones(1, 4, dtype=torch.bool)
        check_positions(torch.arange(4).expand(3, 1, 4), visible)
        with pytest.raises(ParameterError, match="position_ids"):
            check_positions(torch.tensor([[[0, 1, 1, 2]]] * 3), visible)

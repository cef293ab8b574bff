"""Models that cannot hold a tree are refused by name, and those that can are not."""

from __future__ import annotations

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    BloomConfig,
    DogeConfig,
    FalconConfig,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    JambaConfig,
    Lfm2Config,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MBartConfig,
    MistralConfig,
    MoshiConfig,
    MptConfig,
    OpenAIGPTConfig,
    PegasusConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    RoFormerConfig,
    RwkvConfig,
    T5Config,
    TrOCRConfig,
)

from specgym.env.common.errors import PairError
from specgym.env.models.branches import branch_errors
from specgym.env.models.hub.compatibility import check_draft, check_target, check_vocabulary
from specgym.env.models.hub.context import changing_rotation, context_limit, has_window
from specgym.env.models.target import CachedModel

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
WORKING = {
    "llama": LlamaConfig(**SMALL),
    "gpt2": GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "gpt_neox": GPTNeoXConfig(**{**SMALL, "num_key_value_heads": 2}),
    "mistral without window": MistralConfig(**SMALL, sliding_window=None),
    "mistral with a window as wide as the context": MistralConfig(**SMALL, sliding_window=64),
    "qwen2 with an unused window": Qwen2Config(**SMALL, use_sliding_window=False, sliding_window=8),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "falcon with rotary positions": FalconConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, alibi=False
    ),
}
REFUSED = {
    "moshi": (MoshiConfig(sliding_window=8), "window"),
    "doge": (DogeConfig(**SMALL), "mask"),
    "roformer": (RoFormerConfig(num_hidden_layers=2, is_decoder=True), "positions"),
    "trocr": (TrOCRConfig(decoder_layers=2, is_decoder=True), "position_ids"),
    "mbart": (MBartConfig(is_encoder_decoder=False, is_decoder=True), "position_ids"),
    "pegasus": (PegasusConfig(is_encoder_decoder=False, is_decoder=True), "position_ids"),
    "bloom": (BloomConfig(n_layer=2, n_head=2, hidden_size=16), "ALiBi"),
    "mpt": (MptConfig(d_model=16, n_heads=2, n_layers=2), "ALiBi"),
    "falcon": (FalconConfig(alibi=True), "ALiBi"),
    "mamba": (MambaConfig(num_hidden_layers=2), "recurrent"),
    "mamba2": (Mamba2Config(num_hidden_layers=2), "recurrent"),
    "rwkv": (RwkvConfig(num_hidden_layers=2), "recurrent"),
    "jamba": (JambaConfig(), "recurrent"),
    "recurrent_gemma": (RecurrentGemmaConfig(), "recurrent"),
    "qwen3_next": (Qwen3NextConfig(), "recurrent"),
    "lfm2": (Lfm2Config(), "recurrent"),
    "t5": (T5Config(), "encoder-decoder"),
    "bart": (BartConfig(), "encoder-decoder"),
    "bert": (BertConfig(), "decoder"),
    "openai-gpt": (OpenAIGPTConfig(), "cache"),
}


def tokenizer(vocabulary: dict[str, int]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="a")))


@pytest.mark.parametrize("name", WORKING)
def test_a_model_with_full_attention_is_let_through_and_reads_branches_apart(name: str) -> None:
    check_target(WORKING[name])
    check_draft(WORKING[name])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(WORKING[name]).eval()
    assert branch_errors(CachedModel(model)).max() < 1e-4


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_model_that_cannot_branch_is_refused_by_name(model_type: str) -> None:
    config, reason = REFUSED[model_type]
    with pytest.raises(PairError, match=f"target's model type '{model_type}' .*{reason}.*such as Llama"):
        check_target(config)
    with pytest.raises(PairError, match=f"draft's model type '{model_type}' .*{reason}"):
        check_draft(config)


def test_a_configuration_class_of_the_users_own_is_judged_by_its_fields() -> None:
    class OwnConfig(LlamaConfig):  # type: ignore[misc]
        model_type = "own"

    check_target(OwnConfig(**SMALL))
    own = OwnConfig(**SMALL)
    own.layer_types = ["full_attention", "something_new"]
    with pytest.raises(PairError, match=r"'own' .*kinds unknown here .something_new."):
        check_target(own)


class TestVocabulary:
    def test_equal_maps_pass(self) -> None:
        check_vocabulary(tokenizer({"a": 0, "b": 1}), tokenizer({"b": 1, "a": 0}))

    def test_maps_of_one_size_with_two_ids_exchanged_are_refused_with_an_example(self) -> None:
        with pytest.raises(PairError, match=r"2 tokens differ.*'b' has id 1 in the target and id 2 in the draft"):
            check_vocabulary(tokenizer({"a": 0, "b": 1, "c": 2}), tokenizer({"a": 0, "c": 1, "b": 2}))

    @pytest.mark.parametrize("target_has_it", [True, False])
    def test_a_token_that_only_one_knows_is_a_difference(self, target_has_it: bool) -> None:
        more, fewer = tokenizer({"a": 0, "b": 1}), tokenizer({"a": 0})
        pair, message = (
            ((more, fewer), "id 1 in the target and no id in the draft")
            if target_has_it
            else ((fewer, more), "no id in the target and id 1 in the draft")
        )
        with pytest.raises(PairError, match=f"1 tokens differ.*'b' has {message}"):
            check_vocabulary(*pair)

    def test_added_tokens_count(self) -> None:
        plain, chatty = tokenizer({"a": 0}), tokenizer({"a": 0})
        chatty.add_tokens([AddedToken("<|im_start|>", special=True)])
        with pytest.raises(PairError, match=r"'<\|im_start\|>' has no id in the target"):
            check_vocabulary(plain, chatty)


class TestContextLimit:
    @pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
    def test_it_is_what_the_configuration_says(self, name: str) -> None:
        assert context_limit(WORKING[name]) == 64

    def test_a_text_part_speaks_for_its_model(self) -> None:
        assert context_limit(Gemma3Config(text_config=Gemma3TextConfig(**SMALL))) == 64

    @pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic", "llama3"])
    def test_a_stretched_context_counts_from_the_length_before_or_after(self, kind: str) -> None:
        rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        assert context_limit(LlamaConfig(**SMALL, rope_parameters=rope)) == 256
        after = LlamaConfig(**SMALL, rope_parameters=rope | {"original_max_position_embeddings": 16})
        assert context_limit(after) == 64

    def test_a_stretch_of_some_layers_only_does_not_count(self) -> None:
        rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0}
        kinds = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
        assert context_limit(Gemma3TextConfig(**SMALL, rope_parameters=kinds)) == 64

    @pytest.mark.parametrize(("kind", "limit"), [(LlamaConfig, 64), (Phi3Config, 32)])
    def test_longrope_turns_at_the_original_length_where_phi_3_ends(self, kind: type, limit: int) -> None:
        rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 10_000.0}
        length = {"original_max_position_embeddings": 32}
        config = kind(**SMALL, eos_token_id=1, **length, rope_parameters=rope | length)
        assert context_limit(config) == limit
        rotation = changing_rotation(config)
        assert rotation is not None
        assert [rotation.room(place) for place in (30, 31)] == [1, 0]
        assert rotation.room(32) > 1000, "all further rows have the same angles"

    def test_dynamic_rotation_changes_with_every_token_past_its_length(self) -> None:
        rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
        rotation = changing_rotation(LlamaConfig(**SMALL, rope_parameters=rope))
        assert rotation is not None
        assert [rotation.room(place) for place in (60, 63, 64, 100)] == [3, 0, 0, 0]
        assert changing_rotation(LlamaConfig(**SMALL)) is None

    def test_an_unknown_length_is_an_error(self) -> None:
        with pytest.raises(PairError, match=r"'mamba' names no context length.*max_position_embeddings"):
            context_limit(MambaConfig(num_hidden_layers=2))


@pytest.mark.parametrize(
    ("config", "windowed"),
    [
        (MistralConfig(**SMALL, sliding_window=8), True),
        (MistralConfig(**SMALL, sliding_window=64), False),
        (Qwen2Config(**SMALL, use_sliding_window=False, sliding_window=8), False),
        (Gemma3Config(text_config=Gemma3TextConfig(**SMALL, sliding_window=8)), True),
        (Gemma3TextConfig(**SMALL, sliding_window=8, layer_types=["full_attention"] * 2), False),
        (GPTNeoConfig(num_layers=2, attention_types=[[["global", "local"], 1]]), True),
    ],
)
def test_a_window_counts_if_it_hides_something_in_some_layer(config: PretrainedConfig, windowed: bool) -> None:
    check_target(config)
    assert has_window(config) == windowed

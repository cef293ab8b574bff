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
    Llama4TextConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    MptConfig,
    OpenAIGPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    RoFormerConfig,
    RwkvConfig,
    T5Config,
    TrOCRConfig,
)

from specgym.env.common.errors import PairError
from specgym.env.models.hub.compatibility import check_draft, check_target, check_vocabulary, context_limit

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
    "mistral": (MistralConfig(**SMALL, sliding_window=8), "window"),
    "qwen2": (Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=8, max_window_layers=1), "window"),
    "qwen3_moe": (Qwen3MoeConfig(**SMALL, use_sliding_window=True, sliding_window=8), "window"),
    "gemma3_text": (Gemma3TextConfig(**SMALL), "window"),
    "gemma3": (Gemma3Config(text_config=Gemma3TextConfig(**SMALL)), "window"),
    "gpt_neo": (GPTNeoConfig(num_layers=2, attention_types=[[["global", "local"], 1]]), "window"),
    "llama4_text": (Llama4TextConfig(**SMALL), "chunked"),
    "doge": (DogeConfig(**SMALL), "forward pass"),
    "roformer": (RoFormerConfig(num_hidden_layers=2, is_decoder=True), "forward pass"),
    "trocr": (TrOCRConfig(decoder_layers=2, is_decoder=True), "forward pass"),
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


def tree_error(config: PretrainedConfig) -> float:
    """Returns the largest difference between two branches read in one forward and each of them read alone."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    prefix, left, right = torch.randint(3, 30, (3, 1, 4))
    ancestors = torch.kron(torch.eye(2), torch.ones(4, 4).tril())
    seen = torch.cat([torch.ones(8, 4), ancestors], dim=1)
    mask = torch.where(seen > 0, 0.0, torch.finfo(torch.float32).min)[None, None]
    positions = torch.tensor([[4, 5, 6, 7] * 2])
    with torch.no_grad():
        alone = [model(torch.cat([prefix, branch], dim=1)).logits[0, 4:] for branch in (left, right)]
        cache = model(prefix, use_cache=True).past_key_values
        both = torch.cat([left, right], dim=1)
        tree = model(both, attention_mask=mask, position_ids=positions, past_key_values=cache).logits[0]
    return float((tree - torch.cat(alone)).abs().max())


@pytest.mark.parametrize("name", WORKING)
def test_a_model_with_full_attention_is_let_through_and_reads_branches_apart(name: str) -> None:
    check_target(WORKING[name])
    check_draft(WORKING[name])
    assert tree_error(WORKING[name]) < 1e-4


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_model_that_cannot_branch_is_refused_by_name(model_type: str) -> None:
    config, reason = REFUSED[model_type]
    with pytest.raises(PairError, match=f"target's model type '{model_type}' .*{reason}.*such as Llama"):
        check_target(config)
    with pytest.raises(PairError, match=f"draft's model type '{model_type}' .*{reason}"):
        check_draft(config)


def test_alibi_really_reads_branches_wrongly() -> None:
    assert tree_error(MptConfig(vocab_size=32, d_model=16, n_heads=2, n_layers=2, max_seq_len=64)) > 1e-4


def test_a_configuration_class_of_the_users_own_is_judged_by_its_fields() -> None:
    class OwnConfig(LlamaConfig):  # type: ignore[misc]
        model_type = "own"

    check_target(OwnConfig(**SMALL))
    own = OwnConfig(**SMALL)
    own.layer_types = ["full_attention", "something_new"]
    with pytest.raises(PairError, match=r"'own' .*not all its layers have full attention"):
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

    def test_longrope_counts_up_to_the_length_at_which_its_rotation_changes(self) -> None:
        rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 10_000.0}
        config = Phi3Config(**SMALL, eos_token_id=1, original_max_position_embeddings=32, rope_parameters=rope)
        assert context_limit(config) == 32
        config.rope_parameters = None
        assert context_limit(config) == 64, "the test would be vacuous"

    def test_an_unknown_length_is_an_error(self) -> None:
        with pytest.raises(PairError, match=r"'mamba' names no context length.*max_position_embeddings"):
            context_limit(MambaConfig(num_hidden_layers=2))

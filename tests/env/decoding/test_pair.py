"""A target and a draft load from folders and work together, or an error names what is wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import BloomConfig, MambaConfig, PretrainedConfig

from specgym.env.common.errors import LimitError, ModelFileError, PairError, ParameterError, UnknownNameError
from specgym.env.decoding.pair import CALIBRATOR, encode_chat, load_pair
from specgym.env.drafts import CausalDraft, FeatureDraft, LookupDraft
from specgym.env.drafts.calibrator import CalibrationMap, Calibrator
from specgym.env.drafts.network import save_network
from specgym.env.tree.rounds import Request
from tests.support.tiny_models import generate, tiny_network
from tests.support.tiny_pair import VOCABULARY, TinyFolders, save_tiny_folders, tiny_tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> TinyFolders:
    return save_tiny_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture
def broken(folders: TinyFolders, tmp_path: Path) -> Path:
    """A copy of the target's folder, to be broken."""
    return Path(shutil.copytree(folders.target, tmp_path / "broken"))


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-100])
    return path


class TestLoading:
    def test_a_target_and_a_causal_draft_load_from_folders_and_decode_together(self, folders: TinyFolders) -> None:
        pair = load_pair(str(folders.target), str(folders.draft), "float32")
        assert isinstance(pair.draft, CausalDraft)
        assert (pair.target_name, pair.draft_name) == (str(folders.target), str(folders.draft))
        request = Request(encode_chat(pair.tokenizer, ["hello"]), max_new_tokens=16)
        speculated = generate(pair.target, pair.draft, request, "fixed_tree")
        assert speculated.tokens == generate(pair.target, pair.draft, request).tokens
        assert 0 < speculated.accepted < speculated.drafted, "the test would be vacuous"

    def test_a_feature_draft_loads_from_its_file(self, folders: TinyFolders) -> None:
        pair = load_pair(str(folders.target), str(folders.feature_draft), "float32")
        assert isinstance(pair.draft, FeatureDraft)
        assert pair.draft_name == "draft.safetensors"

    def test_a_target_without_a_draft_of_its_own_gets_prompt_lookup(self, folders: TinyFolders) -> None:
        pair = load_pair(str(folders.target))
        assert isinstance(pair.draft, LookupDraft)
        assert pair.draft_name == "lookup"

    @pytest.mark.parametrize("kind", ["draft", "feature_draft"])
    def test_a_calibrator_beside_a_draft_comes_with_it(self, folders: TinyFolders, tmp_path: Path, kind: str) -> None:
        place = Path(getattr(folders, kind))
        folder = place if place.is_dir() else place.parent
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        draft = str(copy if place.is_dir() else copy / place.name)
        assert load_pair(str(folders.target), draft, "float32").draft.calibrator is None
        flat = CalibrationMap(np.ones(1), np.ones(1), np.zeros(1), np.full((1, 1), -2.0))
        Calibrator(flat, flat).save(copy / CALIBRATOR)
        pair = load_pair(str(folders.target), draft, "float32")
        assert pair.draft.calibrator is not None
        assert pair.draft.calibrator.greedy.offset == -2
        (copy / CALIBRATOR).write_text("{", encoding="utf-8")
        with pytest.raises(ModelFileError, match=re.escape(str(copy / CALIBRATOR))):
            load_pair(str(folders.target), draft, "float32")

    def test_a_pair_takes_further_drafts_for_the_target_that_it_has(self, folders: TinyFolders) -> None:
        pair = load_pair(str(folders.target), str(folders.draft), "float32")
        for draft, kind in ((str(folders.feature_draft), FeatureDraft), ("lookup", LookupDraft)):
            other = pair.with_draft(draft)
            assert isinstance(other.draft, kind)
            assert other.target is pair.target
            assert isinstance(pair.draft, CausalDraft), "the first pair keeps its own"
        with pytest.raises(PairError, match="different vocabularies"):
            pair.with_draft(str(folders.stranger))

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
    def test_both_models_get_the_requested_precision(self, folders: TinyFolders, dtype: str) -> None:
        pair = load_pair(str(folders.target), str(folders.draft), dtype)
        assert isinstance(pair.draft, CausalDraft)
        assert {pair.target.dtype, pair.draft.model.dtype} == {getattr(torch, dtype)}


class TestRefusals:
    def test_another_vocabulary_is_refused_with_an_example(self, folders: TinyFolders) -> None:
        message = r"different vocabularies: \d+ tokens differ\. For example '.+' has id \d+ in the target and id \d+ in"
        with pytest.raises(PairError, match=message):
            load_pair(str(folders.target), str(folders.stranger))

    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            (BloomConfig(n_layer=2, n_head=2, hidden_size=16), "'bloom' .*ALiBi"),
            (MambaConfig(), "'mamba' .*recurrent state"),
        ],
        ids=["ALiBi", "recurrent"],
    )
    @pytest.mark.parametrize("role", ["target", "draft"])
    def test_a_model_that_cannot_branch_is_refused_before_any_weight_is_read(
        self, folders: TinyFolders, broken: Path, config: PretrainedConfig, reason: str, role: str
    ) -> None:
        save_file({"model.embed_tokens.weight": torch.zeros(1, 1)}, broken / "model.safetensors", {"format": "pt"})
        names = [str(broken), None] if role == "target" else [str(folders.target), str(broken)]
        with pytest.raises(ModelFileError, match="does not load"):  # else the test would be vacuous
            load_pair(*names)
        config.save_pretrained(broken)
        with pytest.raises(PairError, match=f"The {role}'s model type {reason}"):
            load_pair(*names)

    def test_a_draft_that_does_not_fit_is_refused_before_the_target_is_read(
        self, folders: TinyFolders, broken: Path
    ) -> None:
        save_file({"model.embed_tokens.weight": torch.zeros(1, 1)}, broken / "model.safetensors", {"format": "pt"})
        with pytest.raises(PairError, match="different vocabularies"):
            load_pair(str(broken), str(folders.stranger))

    def test_a_feature_draft_for_hidden_states_of_another_width_is_refused(
        self, folders: TinyFolders, tmp_path: Path
    ) -> None:
        save_network(tiny_network(hidden_size=16), tmp_path / "narrow.safetensors", {})
        with pytest.raises(PairError, match=r"expects hidden states of 16 numbers; the target's have 32"):
            load_pair(str(folders.target), str(tmp_path / "narrow.safetensors"))

    @pytest.mark.parametrize("token", [-1, VOCABULARY])
    def test_a_feature_draft_that_proposes_tokens_unknown_to_the_target_is_refused(
        self, folders: TinyFolders, tmp_path: Path, token: int
    ) -> None:
        network = tiny_network()
        network.token_ids[-1] = token
        save_network(network, tmp_path / "wide.safetensors", {})
        with pytest.raises(PairError, match=f"proposes token {token}; the target knows {VOCABULARY} tokens"):
            load_pair(str(folders.target), str(tmp_path / "wide.safetensors"))

    def test_an_unknown_dtype_is_answered_with_the_known_ones(self, folders: TinyFolders) -> None:
        with pytest.raises(ParameterError, match=r"bfloat16, float16, float32, int8; got 'float8'"):
            load_pair(str(folders.target), dtype="float8")

    @pytest.mark.parametrize("device", ["cuda:99", "abacus", "cpu:x"])
    def test_a_device_that_is_not_there_is_named(self, folders: TinyFolders, device: str) -> None:
        with pytest.raises(ParameterError, match=f"Device '{device}' is not available here"):
            load_pair(str(folders.target), device=device)

    @pytest.mark.parametrize("names", [("smollm2-135m", None), (None, "smollm2-135m-instructed")])
    def test_an_unknown_model_is_answered_with_the_closest_name(
        self, folders: TinyFolders, names: tuple[str | None, str | None]
    ) -> None:
        target, draft = names
        unknown = target or draft
        with pytest.raises(UnknownNameError, match=f"Unknown model '{unknown}'. Did you mean smollm2-135m-instruct?"):
            load_pair(target or str(folders.target), draft)


class TestFiles:
    def test_missing_weights_are_named(self, broken: Path) -> None:
        (broken / "model.safetensors").unlink()
        with pytest.raises(ModelFileError, match=f"{broken} has no weights. Expected model.safetensors"):
            load_pair(str(broken))

    def test_truncated_weights_are_named(self, broken: Path) -> None:
        path = truncate(broken / "model.safetensors")
        with pytest.raises(ModelFileError, match=f"{path} is missing, truncated or unreadable"):
            load_pair(str(broken))

    def test_weights_without_a_tensor_are_refused(self, broken: Path) -> None:
        save_file({}, broken / "model.safetensors", {"format": "pt"})
        with pytest.raises(ModelFileError, match=re.escape(str(broken))):
            load_pair(str(broken))

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("config.json", "{"),
            ("config.json", json.dumps({"model_type": "unheard_of"})),
            ("config.json", json.dumps({"hidden_size": 32})),
            ("tokenizer.json", "{"),
            ("tokenizer_config.json", "{"),
        ],
    )
    @pytest.mark.parametrize("role", ["target", "draft"])
    def test_a_file_that_cannot_be_read_is_named_with_its_folder(
        self, folders: TinyFolders, broken: Path, name: str, text: str, role: str
    ) -> None:
        (broken / name).write_text(text)
        names = [str(broken), None] if role == "target" else [str(folders.target), str(broken)]
        with pytest.raises(ModelFileError, match=re.escape(str(broken))):
            load_pair(*names)

    def test_a_folder_without_a_tokenizer_is_named(self, broken: Path) -> None:
        for path in broken.glob("tokenizer*"):
            path.unlink()
        with pytest.raises(ModelFileError, match=re.escape(str(broken))):
            load_pair(str(broken))

    def test_a_missing_feature_draft_is_named(self, folders: TinyFolders, tmp_path: Path) -> None:
        path = tmp_path / "nothing.safetensors"
        with pytest.raises(ModelFileError, match=f"Expected a feature draft's weights at {path}; there is no such"):
            load_pair(str(folders.target), str(path))

    def test_a_truncated_feature_draft_is_named(self, folders: TinyFolders, tmp_path: Path) -> None:
        path = truncate(Path(shutil.copy(folders.feature_draft, tmp_path)))
        with pytest.raises(ModelFileError, match=f"{path} is corrupt"):
            load_pair(str(folders.target), str(path))

    def test_a_models_weights_are_no_feature_draft(self, folders: TinyFolders) -> None:
        path = folders.target / "model.safetensors"
        with pytest.raises(ModelFileError, match=f"{path} is no feature draft"):
            load_pair(str(folders.target), str(path))


class TestEncodeChat:
    def test_turns_take_the_roles_of_the_template_in_turn_and_an_answer_is_opened(self) -> None:
        tokenizer = tiny_tokenizer()
        expected = (
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n"
            "<|im_start|>user\nhu<|im_end|>\n<|im_start|>assistant\n"
        )
        tokens = encode_chat(tokenizer, ["hi", "ho", "hu"])
        assert tokenizer.decode(tokens) == expected
        assert tokens == tuple(tokenizer.encode(expected)), "marks must be single tokens"

    def test_without_a_template_the_turns_are_plain_text(self) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = None
        assert tokenizer.decode(encode_chat(tokenizer, ["hi", "ho"])) == "hi\nho"

    @pytest.mark.parametrize("turns", [[""], [" \n"], ["hi", "ho", "\t"]])
    @pytest.mark.parametrize("template", [True, False])
    def test_an_empty_turn_is_refused(self, turns: list[str], template: bool) -> None:
        tokenizer = tiny_tokenizer()
        if not template:
            tokenizer.chat_template = None
        with pytest.raises(LimitError, match="The prompt is empty"):
            encode_chat(tokenizer, turns)

    def test_an_answer_may_be_empty(self) -> None:
        tokenizer = tiny_tokenizer()
        assert "assistant\n<|im_end|>" in tokenizer.decode(encode_chat(tokenizer, ["hi", "", "hu"]))

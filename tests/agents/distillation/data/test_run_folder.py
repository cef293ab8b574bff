"""The data of a run: shards that exist are not made again, and other settings are refused."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from specgym.agents.distillation.data.corpus import load_texts, read_shard, shard_path
from specgym.agents.distillation.distillation_config import DistillationConfig, GenerationConfig
from specgym.agents.distillation.pipeline import DistilledDraft, RunFolder
from specgym.env.common.errors import ParameterError
from tests.support.distilling import FEATURE, TOKENIZER, written

SHARDS = ["text-0000.safetensors", "text-0001.safetensors"]
FUSING = replace(FEATURE, feature=replace(FEATURE.feature, feature_layers=(0,)))


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def made(data: RunFolder) -> RunFolder:
    """Returns the run folder after its text and states were written."""
    data.write_text()
    data.record_states()
    return data


class TestShards:
    def test_a_lost_shard_is_made_again_as_it_was(self, easy_model: PreTrainedModel, copy: Path) -> None:
        before = contents(copy, "[ts]*-*.safetensors")
        assert [name for name in before if name.startswith("text")] == SHARDS
        (copy / "text-0001.safetensors").unlink()
        (copy / "states-0000.safetensors").unlink()
        made(RunFolder(easy_model, TOKENIZER, copy, FEATURE))
        assert contents(copy, "[ts]*-*.safetensors") == before

    def test_shards_differ(self, run_folder: Path, distilled: dict[str, DistilledDraft]) -> None:
        one, other = (read_shard(shard_path(run_folder, "text", number))["tokens"] for number in range(2))
        assert not one[:1000].equal(other[:1000])

    def test_other_layers_states_stand_beside_the_first(self, easy_model: PreTrainedModel, copy: Path) -> None:
        before = written(copy)
        data = made(RunFolder(easy_model, TOKENIZER, copy, FUSING))
        assert before.items() <= written(copy).items()
        assert {text.features.shape[1] for text in data.split()[0]} == {64}

    def test_progress_is_reported_to_the_end(self, easy_model: PreTrainedModel, tmp_path: Path) -> None:
        config = replace(FEATURE, generation=replace(FEATURE.generation, conversations=20), shard_conversations=8)
        calls: list[tuple[str, int, int]] = []
        made(RunFolder(easy_model, TOKENIZER, tmp_path, config, progress=lambda *call: calls.append(call)))
        assert [call for call in calls if call[1] == call[2]][-1] == ("labelling text", 3, 3)
        writing = [done for stage, done, total in calls if (stage, total) == ("writing text", 20)]
        assert writing == sorted(writing)
        assert set(writing) == set(range(1, 21))


class TestLongerRun:
    def config(self, conversations: int) -> DistillationConfig:
        generation = replace(FEATURE.generation, conversations=conversations)
        return replace(FEATURE, generation=generation, shard_conversations=10)

    def extend(self, model: PreTrainedModel, folder: Path, *conversations: int) -> dict[str, int]:
        """Writes so many conversations, then so many, and returns when the shards were written."""
        for count in conversations:
            made(RunFolder(model, TOKENIZER, folder, self.config(count)))
        return written(folder)

    def test_it_continues_with_the_shards_that_are_there(self, easy_model: PreTrainedModel, tmp_path: Path) -> None:
        first = self.extend(easy_model, tmp_path / "run", 20)
        assert first.items() < self.extend(easy_model, tmp_path / "run", 30).items()
        self.extend(easy_model, tmp_path / "at once", 30)
        assert contents(tmp_path / "run", "*") == contents(tmp_path / "at once", "*")

    def test_a_shard_that_was_cut_short_is_filled(self, easy_model: PreTrainedModel, tmp_path: Path) -> None:
        self.extend(easy_model, tmp_path / "run", 15, 20)
        assert len(list(load_texts(tmp_path / "run"))) == 20
        self.extend(easy_model, tmp_path / "at once", 20)
        assert contents(tmp_path / "run", "*") == contents(tmp_path / "at once", "*")


class TestRefusals:
    def test_a_folder_of_other_settings_is_refused_and_both_are_shown(
        self, easy_model: PreTrainedModel, copy: Path
    ) -> None:
        before = written(copy, "*")
        config = replace(FEATURE, generation=replace(FEATURE.generation, seed=41))
        with pytest.raises(ParameterError) as refused:
            RunFolder(easy_model, TOKENIZER, copy, config, weights="others").write_text()
        message = str(refused.value)
        assert str(copy / "run.json") in message
        first = FEATURE.generation.seed
        for setting in (f'"seed": {first}', '"seed": 41', '"weights": ""', '"weights": "others"'):
            assert setting in message
        assert written(copy, "*") == before

    @pytest.mark.parametrize("conversations", [1, 3, 9])
    def test_too_little_text_is_refused(self, easy_model: PreTrainedModel, tmp_path: Path, conversations: int) -> None:
        config = replace(FEATURE, generation=replace(FEATURE.generation, conversations=conversations), held_out=50)
        with pytest.raises(ParameterError, match=f"Expected text enough .*; got {conversations} conversations"):
            made(RunFolder(easy_model, TOKENIZER, tmp_path, config)).split()


def test_the_settings_of_the_text_are_stored_as_in_earlier_versions(
    easy_model: PreTrainedModel, tmp_path: Path
) -> None:
    """A run folder of an earlier version can be continued only if the file is the same byte by byte."""
    config = replace(FEATURE, generation=GenerationConfig(conversations=1), shard_conversations=500)
    RunFolder(easy_model, TOKENIZER, tmp_path, config, weights="some").write_text()
    settings = {
        **{"given_share": 0.6, "greedy_share": 0.5, "max_answer_tokens": 256, "max_text_tokens": 256},
        **{"max_user_tokens": 80, "python": platform.python_version(), "seed": 1000, "shard_conversations": 500},
        **{"slots": 96, "user_temperature": 0.8, "weights": "some"},
    }
    assert (tmp_path / "run.json").read_text(encoding="utf-8") == json.dumps(settings, indent=2) + "\n"

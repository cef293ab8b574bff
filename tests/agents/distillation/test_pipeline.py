"""From a target to a trained draft: what exists is not made again, and held-out text is not trained on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest
from transformers import PreTrainedModel

from specgym.agents.distillation.data import teacher
from specgym.agents.distillation.data.corpus import (
    LabelledText,
    frequent_tokens,
    load_texts,
    read_shard,
    shard_path,
    write_shard,
)
from specgym.agents.distillation.data.teacher import dataset_bytes
from specgym.agents.distillation.distillation_config import CausalShape, DistillationConfig, FeatureShape
from specgym.agents.distillation.examination.agreement import bfloat16_agreement
from specgym.agents.distillation.model.draft_shapes import new_causal, new_network
from specgym.agents.distillation.model.students import CausalStudent, FeatureStudent, Student
from specgym.agents.distillation.pipeline import Distillation, DistilledDraft
from specgym.env.common.errors import ModelFileError, PairError, ParameterError, PromptError
from tests.support.distilling import CONFIGS, FEATURE, TOKENIZER, TRAINING, nothing_on_device, written
from tests.support.tiny_pair import tiny_tokenizer

ON_DEVICE = replace(FEATURE, feature=replace(FEATURE.feature, feature_layers=(0,)), keep_states=False)


def without_states(folder: Path) -> None:
    """Removes states and checkpoints: only the text is left."""
    for path in [*folder.glob("states-*"), *folder.glob("*.checkpoint.*")]:
        path.unlink()


OnDevice: TypeAlias = tuple[DistilledDraft, list[tuple[str, int, int]], Path]
"""a draft, the calls of its progress function, and its run folder"""


@pytest.fixture(scope="module")
def on_device(
    easy_model: PreTrainedModel,
    run_folder: Path,
    distilled: dict[str, DistilledDraft],
    tmp_path_factory: pytest.TempPathFactory,
) -> OnDevice:
    """A draft that learned from states on the device, which took exactly the room that there was."""
    folder = Path(shutil.copytree(run_folder, tmp_path_factory.mktemp("device") / "run"))
    without_states(folder)
    room = dataset_bytes(distilled["feature"].training_tokens, 64)
    calls: list[tuple[str, int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "dataset_room", lambda device: room)
        distillation = Distillation(easy_model, TOKENIZER, folder, ON_DEVICE, progress=lambda *call: calls.append(call))
        return distillation.run(), calls, folder


def beginner(config: DistillationConfig, model: PreTrainedModel, seen: list[LabelledText]) -> Student:
    """The draft before its training."""
    tokens, _ = frequent_tokens(seen, len(TOKENIZER), 80)
    if config.kind == "feature":
        return FeatureStudent(new_network(model, tokens, config.feature, 0), model.get_input_embeddings())
    return CausalStudent(new_causal(model, tokens, config.causal, 0), tokens, 10, 0)


@pytest.mark.parametrize("kind", CONFIGS)
class TestDistilledDraft:
    def test_training_raises_the_agreement_on_prompts_it_has_not_seen(
        self, easy_model: PreTrainedModel, run_folder: Path, distilled: dict[str, DistilledDraft], kind: str
    ) -> None:
        seen, held_out = Distillation(easy_model, TOKENIZER, run_folder, CONFIGS[kind]).split()
        chance = bfloat16_agreement(beginner(CONFIGS[kind], easy_model, seen), held_out)
        assert chance.top1[0] < 0.2
        agreement = distilled[kind].examination.agreement["all"]
        assert min(agreement.top1) > 0.75
        assert agreement.positions == chance.positions
        assert agreement == bfloat16_agreement(distilled[kind].student, held_out)

    def test_what_is_held_out_is_not_trained_on(
        self, easy_model: PreTrainedModel, run_folder: Path, distilled: dict[str, DistilledDraft], kind: str
    ) -> None:
        texts = list(load_texts(run_folder))
        assert len(texts) == 150
        seen = [text for text in texts if text.prompt_hash % 6]
        draft = distilled[kind]
        assert draft.training_tokens == sum(len(text.tokens) for text in seen) == sum(draft.kinds.values())
        tokens, coverage = frequent_tokens(seen, len(TOKENIZER), 80)
        assert draft.coverage == coverage < 1
        if kind == "feature":
            assert draft.student.token_ids.equal(tokens)
        trained, kept = Distillation(easy_model, TOKENIZER, run_folder, CONFIGS[kind]).split()
        assert [text.tokens.tolist() for text in trained] == [text.tokens.tolist() for text in seen]
        assert len(trained) + len(kept) == len(texts)

    def test_labels_of_held_out_prompts_do_not_reach_the_weights(
        self, easy_model: PreTrainedModel, copy: Path, distilled: dict[str, DistilledDraft], kind: str
    ) -> None:
        for number in range(2):
            text, path = read_shard(shard_path(copy, "text", number)), shard_path(copy, "states", number)
            states = read_shard(path)
            held_out = (text["prompt_hashes"] % 6 == 0).repeat_interleave(text["starts"].diff())
            assert 0 < held_out.sum() < len(held_out)
            states["features"][held_out] = 9.0
            states["teacher_ids"][held_out] = 5
            write_shard(path, states)
        (copy / f"{kind}.checkpoint.safetensors").unlink()
        again = Distillation(easy_model, TOKENIZER, copy, CONFIGS[kind]).run()
        weights, expected = (each.student.module.state_dict() for each in (again, distilled[kind]))
        assert all(weights[name].equal(expected[name]) for name in expected)
        assert again.examination.agreement["all"] != distilled[kind].examination.agreement["all"]

    def test_agreement_is_reported_by_mode_of_decoding_and_by_kind(
        self, distilled: dict[str, DistilledDraft], kind: str
    ) -> None:
        parts = distilled[kind].examination.agreement
        assert parts["all"].positions == parts["greedy"].positions + parts["sampled"].positions
        hits = [parts[name].positions * parts[name].top1[0] for name in ("all", "greedy", "sampled")]
        assert hits[0] == pytest.approx(hits[1] + hits[2], abs=0.01)
        by_kind = [part.positions for name, part in parts.items() if name.startswith("greedy, ")]
        assert sum(by_kind) == parts["greedy"].positions
        assert len(by_kind) > 2

    def test_its_curves_are_drawn_and_its_history_is_whole(
        self, run_folder: Path, distilled: dict[str, DistilledDraft], kind: str
    ) -> None:
        assert (run_folder / f"{kind}-curves" / "curves.png").exists()
        history = distilled[kind].history
        assert history.updates == len(history.losses) > 10
        assert len(history.agreement) == 2


class TestStages:
    @pytest.mark.parametrize("kind", CONFIGS)
    def test_nothing_that_is_there_is_made_again(
        self, easy_model: PreTrainedModel, copy: Path, distilled: dict[str, DistilledDraft], kind: str
    ) -> None:
        before = written(copy, "[ts]*-*.safetensors")
        stages = []
        distillation = Distillation(
            easy_model, TOKENIZER, copy, CONFIGS[kind], progress=lambda stage, done, total: stages.append(stage)
        )
        again = distillation.run()
        assert written(copy, "[ts]*-*.safetensors") == before
        assert not any(stage.startswith("training") for stage in stages)
        assert again.history == distilled[kind].history
        assert again.examination.agreement == distilled[kind].examination.agreement

    @pytest.mark.parametrize("kind", CONFIGS)
    def test_a_teacher_that_reads_every_batch_teaches_the_same(
        self, easy_model: PreTrainedModel, copy: Path, distilled: dict[str, DistilledDraft], kind: str
    ) -> None:
        without_states(copy)
        # A causal draft reads no states: none are on the device, whatever the setting.
        config = replace(CONFIGS[kind], keep_states=False, device_states=kind == "causal")
        with nothing_on_device():
            again = Distillation(easy_model, TOKENIZER, copy, config).run()
        assert not list(copy.glob("states-*"))
        expected = distilled[kind]
        for losses, kept in zip(again.history.losses, expected.history.losses, strict=True):
            assert losses == pytest.approx(kept, rel=1e-2), "kept log-probabilities are rounded"
        assert again.training_tokens == expected.training_tokens
        agreement, kept_agreement = (each.examination.agreement["all"] for each in (again, expected))
        assert agreement.positions == kept_agreement.positions
        assert agreement.top1 == pytest.approx(kept_agreement.top1, abs=0.05)

    def test_states_on_the_device_teach_a_draft_that_fuses_layers_and_are_computed_once(
        self, easy_model: PreTrainedModel, on_device: OnDevice, tmp_path: Path
    ) -> None:
        draft, calls, folder = on_device
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        assert not list(copy.glob("states-*"))
        again = Distillation(easy_model, TOKENIZER, copy, ON_DEVICE, progress=lambda *call: calls.append(call)).run()
        reading = [(done, total) for stage, done, total in calls if stage == "labelling text"]
        assert reading[-1] == (draft.training_tokens, draft.training_tokens)
        assert [done for done, _ in reading] == sorted({done for done, _ in reading}), "the second run need not read"
        assert min(draft.examination.agreement["all"].top1) > 0.75
        assert isinstance(draft.student, FeatureStudent)
        assert draft.student.scales is not None
        assert again.history == draft.history
        assert again.examination.agreement == draft.examination.agreement

    def test_without_room_on_the_device_the_teacher_reads_the_same_batches_one_by_one(
        self, easy_model: PreTrainedModel, copy: Path, on_device: OnDevice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        draft, _, _ = on_device
        without_states(copy)
        room = dataset_bytes(draft.training_tokens, 64) - 1
        monkeypatch.setattr(teacher, "dataset_room", lambda device: room)
        distillation = Distillation(easy_model, TOKENIZER, copy, ON_DEVICE)
        with pytest.warns(UserWarning, match=r"would take 0\.0 GiB .*: the teacher reads every batch anew"):
            history = distillation.train().history
        for losses, by_batch in zip(draft.history.losses, history.losses, strict=True):
            assert losses == pytest.approx(by_batch, rel=2e-2)
        assert draft.history.losses != history.losses, "the test would be vacuous"

    def test_a_draft_that_reads_the_last_layer_can_use_states_of_more(
        self, easy_model: PreTrainedModel, copy: Path, distilled: dict[str, DistilledDraft]
    ) -> None:
        for path in copy.glob("states-*"):
            path.unlink()
        fusing = replace(FEATURE, feature=replace(FEATURE.feature, feature_layers=(0,)))
        Distillation(easy_model, TOKENIZER, copy, fusing).record_states()
        before = written(copy, "states-*")
        again = Distillation(easy_model, TOKENIZER, copy, FEATURE).run()
        assert before.items() <= written(copy, "states-*").items()
        assert not list(copy.glob("states-000*"))
        assert again.examination.agreement == distilled["feature"].examination.agreement


class TestRefusals:
    def test_a_checkpoint_of_other_settings_is_refused(self, easy_model: PreTrainedModel, copy: Path) -> None:
        config = replace(FEATURE, feature_training=replace(TRAINING, learning_rate=1e-3))
        with pytest.raises(ParameterError, match=r"feature\.checkpoint\.safetensors belongs to a training run with"):
            Distillation(easy_model, TOKENIZER, copy, config).run()

    def test_a_corrupt_checkpoint_is_named(self, easy_model: PreTrainedModel, copy: Path) -> None:
        path = copy / "feature.checkpoint.safetensors"
        path.write_bytes(path.read_bytes()[:-7])
        with pytest.raises(ModelFileError, match=f"{path} is corrupt"):
            Distillation(easy_model, TOKENIZER, copy, FEATURE).run()

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (replace(FEATURE, feature=FeatureShape(feature_layers=(2,))), "the target has 2"),
            (
                replace(CONFIGS["causal"], causal=CausalShape()),
                r"causal\.hidden_size must be 32 or less for this target; got 160",
            ),
        ],
        ids=["layers", "width"],
    )
    def test_a_shape_that_does_not_fit_the_target_is_refused_before_any_work(
        self, easy_model: PreTrainedModel, tmp_path: Path, config: DistillationConfig, message: str
    ) -> None:
        with pytest.raises((PairError, ParameterError), match=message):
            Distillation(easy_model, TOKENIZER, tmp_path, config).run()
        assert not list(tmp_path.iterdir())

    def test_a_target_that_does_not_chat_is_refused_before_any_work(
        self, easy_model: PreTrainedModel, tmp_path: Path
    ) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = None
        with pytest.raises(PairError, match="its tokenizer needs a chat template"):
            Distillation(easy_model, tokenizer, tmp_path, FEATURE)
        assert not list(tmp_path.iterdir())


class TestFurtherPrompts:
    @staticmethod
    def write_prompts(path: Path, texts: list[str]) -> Path:
        records = [{"question_id": i, "category": "any", "turns": [text]} for i, text in enumerate(texts)]
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return path

    def test_prompts_that_are_all_too_long_are_refused_before_any_work(
        self, easy_model: PreTrainedModel, tmp_path: Path
    ) -> None:
        prompts = self.write_prompts(tmp_path / "long.jsonl", ["x" * 999])
        with pytest.raises(PromptError, match=f"{prompts} holds no prompt that leaves the target room"):
            Distillation(easy_model, TOKENIZER, tmp_path / "run", replace(FEATURE, test_prompts=(str(prompts),)))
        assert not (tmp_path / "run").exists()

    def test_agreement_is_measured_on_further_prompts(
        self, easy_model: PreTrainedModel, copy: Path, distilled: dict[str, DistilledDraft]
    ) -> None:
        texts = ["hello", "Why is the sky blue?", "x" * 999]  # the last one leaves no room for an answer
        prompts = self.write_prompts(copy / "questions.jsonl", texts)
        for name in ("feature.checkpoint.safetensors", "causal.checkpoint.safetensors"):
            (copy / name).unlink()
        before = written(copy, "text-*")
        config = replace(FEATURE, test_prompts=(str(prompts),), feature_training=replace(TRAINING, epochs=1))
        distillation = Distillation(easy_model, TOKENIZER, copy, config)
        (answers,) = distillation.test_texts().values()
        assert sorted(len(text.tokens) - text.answer_start > 0 for text in answers) == [True, True]
        for text in answers:
            prompt = TOKENIZER.decode(text.tokens[: text.answer_start])
            assert any(f"<|im_start|>user\n{question}<|im_end|>" in prompt for question in texts[:2])
            assert text.temperature == 0
        draft = distillation.run()
        (name,) = [name for name in draft.examination.agreement if str(prompts) in name]
        assert draft.examination.agreement[name] == bfloat16_agreement(draft.student, answers)
        assert written(copy, "text-*") == before
        assert draft.training_tokens == distilled["feature"].training_tokens, "they are not trained on"

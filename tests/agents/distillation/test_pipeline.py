"""From a target to a trained draft: nothing that is there is made again, and nothing held out is trained on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from specgym.agents.distillation import pipeline
from specgym.agents.distillation.data.batches import frequent_tokens
from specgym.agents.distillation.data.corpus import Lesson, load_lessons, read_shard, shard_path, write_shard
from specgym.agents.distillation.data.device_dataset import shelf_bytes
from specgym.agents.distillation.examination.agreement import agreement_at_work
from specgym.agents.distillation.model.draft_shapes import CausalShape, FeatureShape, new_causal, new_network
from specgym.agents.distillation.model.students import CausalStudent, FeatureStudent, Student
from specgym.agents.distillation.pipeline import Distillation, DistillationConfig, DistilledDraft
from specgym.env.common.errors import LimitError, ModelFileError, PairError, ParameterError, PromptError
from tests.support.distilling import CONFIGS, FEATURE, TOKENIZER, TRAINING, written
from tests.support.tiny_pair import tiny_tokenizer

SHELF = replace(FEATURE, feature=replace(FEATURE.feature, feature_layers=(0,)), keep_states=False)
SHARDS = ["text-0000.safetensors", "text-0001.safetensors"]


@pytest.fixture
def copy(run_folder: Path, graduates: dict[str, DistilledDraft], tmp_path: Path) -> Path:
    """A copy of the run folder after both kinds were made."""
    return Path(shutil.copytree(run_folder, tmp_path / "copy"))


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def beginner(config: DistillationConfig, model: PreTrainedModel, seen: list[Lesson]) -> Student:
    """The draft before its training."""
    tokens, _ = frequent_tokens(seen, len(TOKENIZER), 80)
    if config.kind == "feature":
        return FeatureStudent(new_network(model, tokens, config.feature, 0), model.get_input_embeddings())
    return CausalStudent(new_causal(model, tokens, config.causal, 0), tokens, 10, 0)


@pytest.mark.parametrize("kind", CONFIGS)
class TestGraduate:
    def test_training_raises_the_agreement_on_prompts_it_has_not_seen(
        self, easy_model: PreTrainedModel, run_folder: Path, graduates: dict[str, DistilledDraft], kind: str
    ) -> None:
        seen, held_out = Distillation(easy_model, TOKENIZER, run_folder, CONFIGS[kind]).lessons()
        chance = agreement_at_work(beginner(CONFIGS[kind], easy_model, seen), held_out)
        assert chance.top1[0] < 0.2
        marks = graduates[kind].examination.agreement["all"]
        assert min(marks.top1) > 0.75
        assert marks.positions == chance.positions
        assert marks == agreement_at_work(graduates[kind].student, held_out)

    def test_what_is_held_out_is_not_trained_on(
        self, easy_model: PreTrainedModel, run_folder: Path, graduates: dict[str, DistilledDraft], kind: str
    ) -> None:
        lessons = list(load_lessons(run_folder))
        assert len(lessons) == 150
        seen = [lesson for lesson in lessons if lesson.prompt_hash % 6]
        graduate = graduates[kind]
        assert graduate.training_tokens == sum(len(lesson.tokens) for lesson in seen) == sum(graduate.kinds.values())
        tokens, coverage = frequent_tokens(seen, len(TOKENIZER), 80)
        assert graduate.coverage == coverage < 1
        if kind == "feature":
            assert graduate.student.token_ids.equal(tokens)
        trained, kept = Distillation(easy_model, TOKENIZER, run_folder, CONFIGS[kind]).lessons()
        assert [lesson.tokens.tolist() for lesson in trained] == [lesson.tokens.tolist() for lesson in seen]
        assert len(trained) + len(kept) == len(lessons)

    def test_what_the_teacher_says_of_held_out_prompts_does_not_reach_the_weights(
        self, easy_model: PreTrainedModel, copy: Path, graduates: dict[str, DistilledDraft], kind: str
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
        weights, expected = (each.student.module.state_dict() for each in (again, graduates[kind]))
        assert all(weights[name].equal(expected[name]) for name in expected)
        assert again.examination.agreement["all"] != graduates[kind].examination.agreement["all"]

    def test_agreement_is_told_by_the_way_of_decoding_and_by_kind(
        self, graduates: dict[str, DistilledDraft], kind: str
    ) -> None:
        parts = graduates[kind].examination.agreement
        assert parts["all"].positions == parts["greedy"].positions + parts["sampled"].positions
        hits = [parts[name].positions * parts[name].top1[0] for name in ("all", "greedy", "sampled")]
        assert hits[0] == pytest.approx(hits[1] + hits[2], abs=0.01)
        by_kind = [part.positions for name, part in parts.items() if name.startswith("greedy, ")]
        assert sum(by_kind) == parts["greedy"].positions
        assert len(by_kind) > 2

    def test_its_curves_are_drawn_and_its_history_is_whole(
        self, run_folder: Path, graduates: dict[str, DistilledDraft], kind: str
    ) -> None:
        assert (run_folder / f"{kind}-curves" / "curves.png").exists()
        history = graduates[kind].history
        assert history.updates == len(history.losses) > 10
        assert len(history.agreement) == 2


class TestStages:
    @pytest.mark.parametrize("kind", CONFIGS)
    def test_nothing_that_is_there_is_made_again(
        self, easy_model: PreTrainedModel, copy: Path, graduates: dict[str, DistilledDraft], kind: str
    ) -> None:
        before = written(copy, "[ts]*-*.safetensors")
        stages = []
        distillation = Distillation(
            easy_model, TOKENIZER, copy, CONFIGS[kind], progress=lambda stage, done, total: stages.append(stage)
        )
        again = distillation.run()
        assert written(copy, "[ts]*-*.safetensors") == before
        assert not any(stage.startswith("training") for stage in stages)
        assert again.history == graduates[kind].history
        assert again.examination.agreement == graduates[kind].examination.agreement

    @pytest.mark.parametrize("kind", CONFIGS)
    def test_a_teacher_that_is_asked_for_every_batch_teaches_the_same(
        self, easy_model: PreTrainedModel, copy: Path, graduates: dict[str, DistilledDraft], kind: str
    ) -> None:
        for path in [*copy.glob("states-*"), *copy.glob("*.checkpoint.*")]:
            path.unlink()
        config = replace(CONFIGS[kind], keep_states=False, shelf=False)
        again = Distillation(easy_model, TOKENIZER, copy, config).run()
        assert not list(copy.glob("states-*"))
        expected = graduates[kind]
        for losses, kept in zip(again.history.losses, expected.history.losses, strict=True):
            assert losses == pytest.approx(kept, rel=1e-2), "kept log-probabilities are rounded"
        assert again.training_tokens == expected.training_tokens
        marks, kept_marks = (each.examination.agreement["all"] for each in (again, expected))
        assert marks.positions == kept_marks.positions
        assert marks.top1 == pytest.approx(kept_marks.top1, abs=0.05)

    def test_states_on_a_shelf_teach_a_draft_that_fuses_layers_and_are_asked_for_once(
        self, easy_model: PreTrainedModel, copy: Path, graduates: dict[str, DistilledDraft]
    ) -> None:
        for path in [*copy.glob("states-*"), *copy.glob("*.checkpoint.*")]:
            path.unlink()
        told: list[tuple[str, int, int]] = []
        graduate, again = (
            Distillation(easy_model, TOKENIZER, copy, SHELF, progress=lambda *each: told.append(each)).run()
            for _ in range(2)
        )
        assert not list(copy.glob("states-*"))
        asked = [(done, total) for stage, done, total in told if stage == "asking the teacher"]
        assert asked[-1] == (graduate.training_tokens, graduate.training_tokens)
        assert [done for done, _ in asked] == sorted({done for done, _ in asked}), "the second run need not ask"
        assert min(graduate.examination.agreement["all"].top1) > 0.75
        assert isinstance(graduate.student, FeatureStudent)
        assert graduate.student.scales is not None
        assert again.history == graduate.history
        assert again.examination.agreement == graduate.examination.agreement

    def test_without_room_for_a_shelf_the_same_batches_are_asked_for_one_by_one(
        self, easy_model: PreTrainedModel, copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen, _ = Distillation(easy_model, TOKENIZER, copy, SHELF).lessons()
        needed = shelf_bytes(sum(len(lesson.tokens) for lesson in seen), 64)
        histories = []
        for room in (needed, needed - 1):
            for path in copy.glob("*.checkpoint.*"):
                path.unlink()
            monkeypatch.setattr(pipeline, "shelf_room", lambda device, room=room: room)
            distillation = Distillation(easy_model, TOKENIZER, copy, SHELF)
            if room < needed:
                with pytest.warns(UserWarning, match=r"would take 0\.0 GiB .*: the teacher is asked for every batch"):
                    histories.append(distillation.train().history)
            else:
                histories.append(distillation.train().history)
        for shelved, asked in zip(*(history.losses for history in histories), strict=True):
            assert shelved == pytest.approx(asked, rel=2e-2)
        assert histories[0].losses != histories[1].losses, "the test would be vacuous"

    @pytest.mark.parametrize("config", [FEATURE, CONFIGS["causal"], replace(CONFIGS["causal"], keep_states=False)])
    def test_a_shelf_is_for_feature_drafts_whose_states_are_not_kept(
        self,
        easy_model: PreTrainedModel,
        copy: Path,
        monkeypatch: pytest.MonkeyPatch,
        config: DistillationConfig,
    ) -> None:
        def refuse(*arguments: object) -> None:
            raise AssertionError

        monkeypatch.setattr(pipeline, "DeviceDataset", refuse)
        monkeypatch.setattr(pipeline, "shelf_room", refuse)
        for path in copy.glob("*.checkpoint.*"):
            path.unlink()
        short = {f"{config.kind}_training": replace(TRAINING, epochs=1)}
        assert Distillation(easy_model, TOKENIZER, copy, replace(config, **short)).train().history.updates > 0

    def test_a_lost_shard_is_made_again_as_it_was(self, easy_model: PreTrainedModel, copy: Path) -> None:
        before = contents(copy, "[ts]*-*.safetensors")
        assert [name for name in before if name.startswith("text")] == SHARDS
        (copy / "text-0001.safetensors").unlink()
        (copy / "states-0000.safetensors").unlink()
        distillation = Distillation(easy_model, TOKENIZER, copy, FEATURE)
        distillation.write_text()
        distillation.record_states()
        assert contents(copy, "[ts]*-*.safetensors") == before

    def test_shards_differ(self, run_folder: Path, graduates: dict[str, DistilledDraft]) -> None:
        one, other = (read_shard(shard_path(run_folder, "text", number))["tokens"] for number in range(2))
        assert not one[:1000].equal(other[:1000])

    def test_other_layers_states_stand_beside_the_first(self, easy_model: PreTrainedModel, copy: Path) -> None:
        before = written(copy)
        config = replace(FEATURE, feature=replace(FEATURE.feature, feature_layers=(0,)))
        distillation = Distillation(easy_model, TOKENIZER, copy, config)
        distillation.write_text()
        distillation.record_states()
        assert before.items() <= written(copy).items()
        assert {lesson.features.shape[1] for lesson in distillation.lessons()[0]} == {64}

    def test_a_draft_that_reads_the_last_layer_makes_do_with_states_of_more(
        self, easy_model: PreTrainedModel, copy: Path, graduates: dict[str, DistilledDraft]
    ) -> None:
        for path in copy.glob("states-*"):
            path.unlink()
        Distillation(
            easy_model, TOKENIZER, copy, replace(FEATURE, feature=replace(FEATURE.feature, feature_layers=(0,)))
        ).record_states()
        before = written(copy, "states-*")
        again = Distillation(easy_model, TOKENIZER, copy, FEATURE).run()
        assert before.items() <= written(copy, "states-*").items()
        assert not list(copy.glob("states-000*"))
        assert again.examination.agreement == graduates["feature"].examination.agreement

    def test_progress_is_told_to_the_end(self, easy_model: PreTrainedModel, tmp_path: Path) -> None:
        config = replace(FEATURE, generation=replace(FEATURE.generation, conversations=20), shard_conversations=8)
        told: list[tuple[str, int, int]] = []
        distillation = Distillation(easy_model, TOKENIZER, tmp_path, config, progress=lambda *each: told.append(each))
        distillation.write_text()
        distillation.record_states()
        assert [each for each in told if each[1] == each[2]][-1] == ("asking the teacher", 3, 3)
        writing = [done for stage, done, total in told if (stage, total) == ("writing text", 20)]
        assert writing == sorted(writing)
        assert set(writing) == set(range(1, 21))


class TestLongerRun:
    def config(self, conversations: int) -> DistillationConfig:
        generation = replace(FEATURE.generation, conversations=conversations)
        return replace(FEATURE, generation=generation, shard_conversations=10)

    def extend(self, model: PreTrainedModel, folder: Path, *conversations: int) -> dict[str, int]:
        """Writes so many, then so many, and tells when the shards were written."""
        for count in conversations:
            distillation = Distillation(model, TOKENIZER, folder, self.config(count))
            distillation.write_text()
            distillation.record_states()
        return written(folder)

    def test_it_goes_on_with_the_shards_that_are_there(self, easy_model: PreTrainedModel, tmp_path: Path) -> None:
        first = self.extend(easy_model, tmp_path / "run", 20)
        assert first.items() < self.extend(easy_model, tmp_path / "run", 30).items()
        self.extend(easy_model, tmp_path / "at once", 30)
        assert contents(tmp_path / "run", "*") == contents(tmp_path / "at once", "*")

    def test_a_shard_that_was_cut_short_is_filled(self, easy_model: PreTrainedModel, tmp_path: Path) -> None:
        self.extend(easy_model, tmp_path / "run", 15, 20)
        assert len(list(load_lessons(tmp_path / "run"))) == 20
        self.extend(easy_model, tmp_path / "at once", 20)
        assert contents(tmp_path / "run", "*") == contents(tmp_path / "at once", "*")


class TestRefusals:
    def test_a_folder_of_other_settings_is_refused_and_both_are_shown(
        self, easy_model: PreTrainedModel, copy: Path
    ) -> None:
        before = written(copy, "*")
        config = replace(FEATURE, generation=replace(FEATURE.generation, seed=41))
        with pytest.raises(ParameterError) as refused:
            Distillation(easy_model, TOKENIZER, copy, config, weights="others").run()
        message = str(refused.value)
        assert str(copy / "run.json") in message
        first = FEATURE.generation.seed
        for setting in (f'"seed": {first}', '"seed": 41', '"weights": ""', '"weights": "others"'):
            assert setting in message
        assert written(copy, "*") == before

    def test_a_checkpoint_of_other_settings_is_refused(self, easy_model: PreTrainedModel, copy: Path) -> None:
        config = replace(FEATURE, feature_training=replace(TRAINING, learning_rate=1e-3))
        with pytest.raises(ParameterError, match=r"feature\.checkpoint\.safetensors belongs to a training run with"):
            Distillation(easy_model, TOKENIZER, copy, config).run()

    @pytest.mark.parametrize("name", ["text-0001", "states-0000", "feature.checkpoint"])
    def test_a_corrupt_file_is_named(self, easy_model: PreTrainedModel, copy: Path, name: str) -> None:
        path = copy / f"{name}.safetensors"
        path.write_bytes(path.read_bytes()[:-7])
        with pytest.raises(ModelFileError, match=f"{path} is corrupt"):
            Distillation(easy_model, TOKENIZER, copy, FEATURE).run()

    @pytest.mark.parametrize("conversations", [1, 3, 9])
    def test_too_little_text_is_refused(self, easy_model: PreTrainedModel, tmp_path: Path, conversations: int) -> None:
        generation = replace(FEATURE.generation, conversations=conversations)
        with pytest.raises(ParameterError, match=f"Expected text enough .*; got {conversations} conversations"):
            Distillation(easy_model, TOKENIZER, tmp_path, replace(FEATURE, generation=generation, held_out=50)).run()

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

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"shard_conversations": 0}, LimitError, "shard_conversations must be 1 or more; got 0."),
            ({"held_out": 1}, ParameterError, "held_out must be 2 or more; got 1."),
            ({"kind": "eager"}, ParameterError, "kind must be feature or causal; got 'eager'."),
        ],
    )
    def test_a_setting_outside_its_range_is_named(
        self, changes: dict[str, object], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            DistillationConfig(**changes)  # type: ignore[arg-type]


class TestExams:
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
            Distillation(easy_model, TOKENIZER, tmp_path / "run", replace(FEATURE, exams=(str(prompts),)))
        assert not (tmp_path / "run").exists()

    def test_agreement_is_measured_on_prompts_besides(
        self, easy_model: PreTrainedModel, copy: Path, graduates: dict[str, DistilledDraft]
    ) -> None:
        texts = ["hello", "Why is the sky blue?", "x" * 999]  # the last one leaves no room for an answer
        prompts = self.write_prompts(copy / "questions.jsonl", texts)
        for name in ("feature.checkpoint.safetensors", "causal.checkpoint.safetensors"):
            (copy / name).unlink()
        before = written(copy, "text-*")
        config = replace(FEATURE, exams=(str(prompts),), feature_training=replace(TRAINING, epochs=1))
        distillation = Distillation(easy_model, TOKENIZER, copy, config)
        (exam,) = distillation.exams().values()
        assert sorted(len(lesson.tokens) - lesson.answer_start > 0 for lesson in exam) == [True, True]
        for lesson in exam:
            text = TOKENIZER.decode(lesson.tokens[: lesson.answer_start])
            assert any(f"<|im_start|>user\n{each}<|im_end|>" in text for each in texts[:2])
            assert lesson.temperature == 0
        graduate = distillation.run()
        (name,) = [name for name in graduate.examination.agreement if str(prompts) in name]
        assert graduate.examination.agreement[name] == agreement_at_work(graduate.student, exam)
        assert written(copy, "text-*") == before
        assert graduate.training_tokens == graduates["feature"].training_tokens, "they are not trained on"

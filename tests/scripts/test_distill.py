"""Distilling a draft, comparing variants and fitting its calibrator, from the command line to the files."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tyro
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from specgym.agents.distillation.distillation_config import GenerationConfig
from specgym.agents.distillation.examination.calibration import fit_on_trace
from specgym.env.common.checkpoint import load_tensors, save_tensors
from specgym.env.decoding.pair import encode_chat, load_pair
from specgym.env.drafts import CausalDraft, FeatureDraft
from specgym.env.drafts.calibrator import load_calibrator
from specgym.env.replay.sources import find_trace
from specgym.env.tree.rounds import Request
from specgym.scripts.distill import DistillOptions, distill
from tests.support.commands import Caller, assert_refused, finish, largest_file, start, write_prompts
from tests.support.tiny_models import generate
from tests.support.tiny_pair import TinyFolders, tiny_tokenizer

SMALL = [
    *("--config.generation.conversations", 80, "--config.generation.slots", 40, "--config.generation.given-share", 0),
    *("--config.generation.max-user-tokens", 12, "--config.generation.max-text-tokens", 12),
    *("--config.generation.max-answer-tokens", 24, "--config.shard-conversations", 40, "--config.held-out", 4),
    *("--config.feature.vocabulary", 80, "--config.feature-training.epochs", 2),
    *("--config.feature-training.batch-tokens", 256, "--config.feature-training.learning-rate", 0.01),
    *("--config.causal.hidden-size", 32, "--config.causal.heads", 4, "--config.causal.layers", 2),
    *("--config.causal.vocabulary", 80, "--config.causal-training.epochs", 2),
    *("--config.causal-training.batch-tokens", 256, "--config.causal-training.learning-rate", 0.01),
    "--config.test-prompts",
]
"""options of a distillation that takes seconds"""


def distill_arguments(folders: TinyFolders, run: Path, *more: object) -> list[object]:
    return ["--target", folders.target, "--run", run, *SMALL, *more]


@pytest.fixture(scope="module")
def run(folders: TinyFolders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a distillation of a feature draft, with the draft in it."""
    run = tmp_path_factory.mktemp("distill")
    arguments = list(map(str, distill_arguments(folders, run)))
    assert distill(tyro.cli(DistillOptions, args=arguments)) == 0
    return run


class TestDistill:
    @staticmethod
    def shards(run: Path) -> dict[str, tuple[int, str]]:
        """When each shard was written, and a digest of it."""
        paths = sorted([*run.glob("text-*.safetensors"), *run.glob("states-*.safetensors")])
        return {path.name: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths}

    def test_the_draft_its_card_and_its_record_are_written(self, run: Path) -> None:
        draft = run / "feature"
        names = {"draft.safetensors", "calibrator.json", "calibration.png", "README.md", "training.json"}
        assert {path.name for path in draft.iterdir()} == names
        assert (draft / "README.md").read_text(encoding="utf-8").startswith("# A feature draft for target\n")
        record = json.loads((draft / "training.json").read_text(encoding="utf-8"))
        assert record["target"] == "target"
        assert record["config"]["kind"] == "feature"
        assert record["config"]["generation"]["conversations"] == 80
        assert record["config"]["test_prompts"] == []
        agreement = record["agreement"]["all"]
        assert agreement["positions"] > 0
        assert all(0 <= one <= four <= 1 for one, four in zip(agreement["top1"], agreement["top4"], strict=True))

    def test_the_draft_works_with_its_target(self, folders: TinyFolders, run: Path) -> None:
        pair = load_pair(str(folders.target), str(run / "feature" / "draft.safetensors"), "float32")
        assert isinstance(pair.draft, FeatureDraft)
        request = Request(encode_chat(pair.tokenizer, ["hello"]), 48)
        speculated = generate(pair.target, pair.draft, request, "fixed_tree:branch=4:depth=3")
        assert speculated.tokens == generate(pair.target, pair.draft, request).tokens
        assert 0 < speculated.accepted < speculated.drafted

    def test_a_second_run_uses_what_is_there(self, folders: TinyFolders, run: Path, call: Caller) -> None:
        before, weights = self.shards(run), load_file(run / "feature" / "draft.safetensors")
        assert sorted(before) == [f"{what}-000{n}.safetensors" for what in ("states", "text") for n in range(2)]
        ended = call("distill", *distill_arguments(folders, run))
        assert ended.status == 0
        assert f"Written to {run / 'feature'}/" in ended.err
        assert "training, loss" not in ended.err
        assert self.shards(run) == before
        assert_close(load_file(run / "feature" / "draft.safetensors"), weights, rtol=0, atol=0)

    def test_a_lost_shard_is_made_again_as_it_was(
        self, folders: TinyFolders, run: Path, call: Caller, tmp_path: Path
    ) -> None:
        copy = Path(shutil.copytree(run, tmp_path / "copy"))
        for name in ("text-0001.safetensors", "states-0001.safetensors"):
            (copy / name).unlink()
        assert call("distill", *distill_arguments(folders, copy)).status == 0
        digests = [{name: digest for name, (_, digest) in self.shards(each).items()} for each in (run, copy)]
        assert digests[0] == digests[1]

    def test_a_causal_draft_from_the_same_text_is_a_model_of_its_own(
        self, folders: TinyFolders, run: Path, call: Caller, tmp_path: Path
    ) -> None:
        copy, before = Path(shutil.copytree(run, tmp_path / "copy")), self.shards(run)
        more = ["--config.kind", "causal", "--output", tmp_path / "own"]
        ended = call("distill", *distill_arguments(folders, copy, *more))
        assert ended.status == 0
        assert f"Written to {tmp_path / 'own'}/" in ended.err
        digests = [{name: digest for name, (_, digest) in shards.items()} for shards in (self.shards(copy), before)]
        assert digests[0] == digests[1]
        assert (
            (tmp_path / "own" / "README.md").read_text(encoding="utf-8").startswith("# A standalone draft for target")
        )
        pair = load_pair(str(folders.target), str(tmp_path / "own"), "float32")
        assert isinstance(pair.draft, CausalDraft)
        request = Request(encode_chat(pair.tokenizer, ["hello"]), 48)
        speculated = generate(pair.target, pair.draft, request, "fixed_tree:branch=4:depth=3")
        assert speculated.tokens == generate(pair.target, pair.draft, request).tokens
        assert speculated.accepted > 0

    def test_a_corrupt_checkpoint_is_named(self, folders: TinyFolders, run: Path, call: Caller, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(run, tmp_path / "copy"))
        path = copy / "feature.checkpoint.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
        ended = call("distill", *distill_arguments(folders, copy))
        assert ended.status == 2
        assert f"error: {path} is corrupt" in ended.err
        assert "Traceback" not in ended.err

    @pytest.mark.parametrize("name", ["text-0001", "states-0000"])
    def test_a_corrupt_shard_is_made_anew(
        self, folders: TinyFolders, run: Path, call: Caller, tmp_path: Path, name: str
    ) -> None:
        copy = Path(shutil.copytree(run, tmp_path / "copy"))
        path = copy / f"{name}.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
        assert call("distill", *distill_arguments(folders, copy)).status == 0
        assert path.read_bytes() == (run / path.name).read_bytes()

    def test_a_folder_of_other_settings_is_refused_before_any_work(
        self, folders: TinyFolders, run: Path, call: Caller
    ) -> None:
        before = self.shards(run)
        ended = call("distill", *distill_arguments(folders, run, "--config.generation.seed", 7))
        assert ended.status == 2
        first = GenerationConfig().seed
        for words in (
            f"error: {run}/run.json is of text that was written with other settings",
            f'"seed": {first}',
            '"seed": 7',
        ):
            assert words in ended.err
        assert "Traceback" not in ended.err
        assert self.shards(run) == before

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--device", "nowhere"], "Device 'nowhere' is not available here"),
            (["--threads", "0"], "threads must be 1 or more; got 0."),
            (["--target", "./nowhere"], "There is no folder nowhere"),
            (["--output", "pyproject.toml"], "Could not write pyproject.toml"),
            (["--config.shard-conversations", "0"], "shard_conversations must be 1 or more; got 0."),
            (["--config.held-out", "1"], "held_out must be 2 or more; got 1."),
            (["--config.generation.slots", "0"], "generation.slots must be 1 or more; got 0."),
            (["--config.generation.greedy-share", "2"], "generation.greedy_share must be within 0 and 1; got 2.0."),
            (["--config.feature-training.epochs", "0"], "training.epochs must be 1 or more; got 0."),
            (
                ["--config.feature.begin", "home"],
                "feature.begin must be random, target or a .safetensors file that is there; got 'home'.",
            ),
            (["--config.feature.feature-layers", "2"], "hidden states of layers [2]; the target has 2."),
            (
                ["--config.causal.heads", "3"],
                "causal.hidden_size must be an even multiple of causal.heads; got 32 and 3.",
            ),
            (
                ["--config.kind", "causal", "--config.causal.hidden-size", "64"],
                "causal.hidden_size must be 32 or less for this target; got 64.",
            ),
            (["--config.test-prompts", "nowhere.jsonl"], "nowhere.jsonl"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_a_wrong_setting_is_answered_by_name_before_any_work(
        self, folders: TinyFolders, call: Caller, tmp_path: Path, more: list[str], message: str
    ) -> None:
        assert_refused(call("distill", *distill_arguments(folders, tmp_path / "run", *more)), message)
        assert not list(tmp_path.glob("run/*.safetensors"))

    @pytest.mark.parametrize("more", [["--config.generation.slots", "many"], ["--config.kind", "eager"]])
    def test_what_is_no_setting_at_all_is_explained(
        self, folders: TinyFolders, call: Caller, tmp_path: Path, more: list[str]
    ) -> None:
        ended = call("distill", *distill_arguments(folders, tmp_path / "run", *more))
        assert (ended.status, ended.out) == (2, "")
        assert more[0] in ended.err
        assert more[1] in ended.err
        assert "Traceback" not in ended.err

    def test_a_target_that_does_not_chat_is_refused_before_any_work(
        self, folders: TinyFolders, call: Caller, tmp_path: Path
    ) -> None:
        silent = Path(shutil.copytree(folders.target, tmp_path / "silent"))
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = None
        (silent / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer.save_pretrained(silent)
        ended = call("distill", "--target", silent, "--run", tmp_path / "run")
        assert ended.status == 2
        assert "its tokenizer needs a chat template" in ended.err
        assert not list(tmp_path.glob("run/*.safetensors"))

    @pytest.mark.parametrize(
        "name", ["text-0001.safetensors", "states-0000.safetensors", "feature.checkpoint.safetensors"]
    )
    def test_a_full_disk_is_one_error_and_the_next_run_goes_on(
        self, folders: TinyFolders, run: Path, call: Caller, tmp_path: Path, name: str
    ) -> None:
        copy = Path(shutil.copytree(run, tmp_path / "copy"))
        for path in (copy / name, copy / "feature.checkpoint.safetensors"):
            path.unlink(missing_ok=True)
        with largest_file((run / name).stat().st_size - 1):
            ended = call("distill", *distill_arguments(folders, copy))
        assert ended.status == 2
        assert ended.err.splitlines()[-1].startswith(f"error: Could not write {copy / name}: ")
        assert "Traceback" not in ended.err
        assert call("distill", *distill_arguments(folders, copy)).status == 0
        for part in ("feature/draft.safetensors", "feature/calibrator.json"):
            assert (copy / part).read_bytes() == (run / part).read_bytes()

    def test_ctrl_c_during_training_ends_it_and_the_next_run_goes_on(
        self, folders: TinyFolders, run: Path, tmp_path: Path
    ) -> None:
        copy = Path(shutil.copytree(run, tmp_path / "copy"))
        path = copy / "feature.checkpoint.safetensors"
        path.unlink()
        # So long that neither run ever ends by itself.
        more = ["--config.feature-training.updates", 5_000, "--config.feature-training.checkpoint-minutes", 0]
        histories: list[dict[str, Any]] = [{"updates": 0, "losses": []}]
        for _ in range(2):
            before = histories[-1]
            process = start("distill", *distill_arguments(folders, copy, *more), home=tmp_path / "home")
            while process.poll() is None and training_history(path)["updates"] <= before["updates"]:
                time.sleep(0.02)
            ended = finish(process, signal.SIGINT)
            assert (ended.status, ended.out) == (130, ""), ended.err
            assert "Interrupted." in ended.err
            assert "Traceback" not in ended.err
            histories.append(training_history(path))
            assert histories[-1]["updates"] == len(histories[-1]["losses"]) > before["updates"]
            assert histories[-1]["losses"][: before["updates"]] == before["losses"]
            mark_first_loss(path)
            histories[-1] = training_history(path)
        assert histories[-1]["losses"][0] == [-1.0], "the second run had gone on from the first one's checkpoint"


def training_history(path: Path) -> dict[str, Any]:
    """Reads the history of a checkpoint; without a file it is empty."""
    if not path.exists():
        return {"updates": 0, "losses": []}
    with safe_open(path, framework="pt") as file:
        history: dict[str, Any] = json.loads(file.metadata()["history"])
    return history


def mark_first_loss(path: Path) -> None:
    """Makes the first loss one that no training has, to tell a run that goes on from one that begins anew."""
    tensors, notes = load_tensors(path)
    history = json.loads(notes["history"])
    history["losses"][0] = [-1.0]
    save_tensors(path, tensors, notes | {"history": json.dumps(history)})


class TestAblate:
    def test_variants_are_trained_and_compared_and_the_teachers_states_need_not_be_kept(
        self, folders: TinyFolders, run: Path, call: Caller, tmp_path: Path
    ) -> None:
        copy = Path(shutil.copytree(run, tmp_path / "copy"))
        for path in copy.glob("states-*"):
            path.unlink()
        options = [
            *("--target", folders.target, "--run", copy, "--output", tmp_path / "out", "--minutes", 0.002),
            *("--feature-layers", 0, "--limit", 1, "--max-new-tokens", 8, *SMALL),
            *("--prompts", write_prompts(tmp_path / "prompts.jsonl", ["hello"])),
            "--config.no-keep-states",
        ]
        ended = call("ablate", *options)
        assert ended.status == 0, ended.err
        assert not list(copy.glob("states-*"))
        record = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
        assert len(record["variants"]) == 10
        for found in record["variants"]:
            assert found["updates"] >= 1
            assert found["agreement"]["positions"] > 0
            assert found["tokens_per_second"] > 0
            assert f"| {found['name']} |" in (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
        trained = {path: path.stat().st_mtime_ns for path in (copy / "ablation").iterdir()}
        assert call("ablate", *options).status == 0
        assert trained == {path: path.stat().st_mtime_ns for path in trained}, "what is trained is kept"


class TestFitCalibrator:
    @pytest.fixture
    @staticmethod
    def draft(run: Path, tmp_path: Path) -> Path:
        """A copy of the distilled draft."""
        return Path(shutil.copytree(run / "feature", tmp_path / "draft"))

    @pytest.fixture
    @staticmethod
    def trace(folders: TinyFolders, call: Caller, draft: Path, tmp_path: Path) -> Path:
        """A trace of it."""
        texts = [f"say {letter * 3} again" for letter in "abcdefghijklmnop"]
        ended = call(
            *("record", "--target", folders.target, "--draft", draft / "draft.safetensors", "--dtype", "float32"),
            *("--output", tmp_path / "tiny.sgt", "--prompts", write_prompts(tmp_path / "prompts.jsonl", texts)),
            *("--max-new-tokens", 12, "--floor", 0.3, "--max-depth", 3),
        )
        assert ended.status == 0, ended.err
        return tmp_path / "tiny.sgt"

    def test_the_draft_gets_the_new_calibrator_and_the_card_its_errors(
        self, call: Caller, draft: Path, trace: Path
    ) -> None:
        before = {path.name: path.read_bytes() for path in draft.iterdir()}
        ended = call("fit-calibrator", "--trace", trace, "--draft", draft)
        assert ended.status == 0, ended.err
        after = {path.name: path.read_bytes() for path in draft.iterdir()}
        changed = {name for name in before if before[name] != after[name]}
        assert changed == {"calibrator.json", "calibration.png", "training.json", "README.md"}
        fitted = fit_on_trace(find_trace(trace)).calibrator
        assert load_calibrator(draft / "calibrator.json").record() == fitted.record()
        assert "record them again" in ended.err
        (depth, children) = (
            json.loads(after["training.json"])["calibration"]["greedy"][0][key] for key in ("depth", "children")
        )
        assert f"| greedy | {depth} | {children:,} |" in after["README.md"].decode()
        counts = Counter(text.split == "test" for text in find_trace(trace).texts)
        origin = f"fitted on {counts[False]} recorded answers, measured on {counts[True]} answers to other prompts"
        assert origin in after["README.md"].decode()
        assert json.loads(after["training.json"]).keys() == json.loads(before["training.json"]).keys() | {
            "calibrated_on"
        }

    def test_a_trace_of_another_draft_is_refused(
        self, folders: TinyFolders, call: Caller, draft: Path, trace: Path
    ) -> None:
        tensors = load_file(draft / "draft.safetensors")
        with safe_open(draft / "draft.safetensors", "pt") as file:
            notes = file.metadata()
        save_file({**tensors, "head.weight": tensors["head.weight"] + 1}, draft / "draft.safetensors", notes)
        before = (draft / "calibrator.json").read_bytes()
        assert_refused(call("fit-calibrator", "--trace", trace, "--draft", draft), "recorded with another draft")
        assert (draft / "calibrator.json").read_bytes() == before

    def test_a_folder_without_a_record_is_refused(self, call: Caller, draft: Path, trace: Path) -> None:
        (draft / "training.json").unlink()
        ended = call("fit-calibrator", "--trace", trace, "--draft", draft)
        assert_refused(ended, f"Expected the record of a draft that `specgym distill` wrote, {draft / 'training.json'}")

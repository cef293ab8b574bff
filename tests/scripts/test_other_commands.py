"""Distilling a draft, checking exactness and updating pages, from the command line to the files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from agents.distillation.generation import GenerationConfig
from agents.distillation.pipeline import DistillationConfig
from agents.distillation.training import TrainingConfig
from controllers.evaluation.report import write_results
from controllers.registry import controller_names
from env.drafts import FeatureDraft
from env.pair import encode_chat, load_pair
from env.rounds import Request
from scripts.distill import DistillOptions, distill
from tests.controllers import make_results
from tests.scripts import COMMANDS, ROOT, Caller, assert_refused, finish, start, write_prompts
from tests.tiny import generate
from tests.tiny_pair import TinyFolders, tiny_tokenizer

CONFIG = DistillationConfig(
    GenerationConfig(tokens=2000, slots=8, max_user_tokens=12, max_answer_tokens=24),
    TrainingConfig(epochs=2, batch_tokens=256, learning_rate=1e-2, vocabulary=80),
    shard_tokens=1000,
    held_out=4,
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(call: Caller, command: str) -> None:
    ended = call(command, "--help")
    assert ended.status == 0
    assert ended.err == ""
    assert ended.out.startswith("usage: ")
    assert "--help" in ended.out
    assert {path.stem for path in (ROOT / "scripts").glob("*.py")} == {*COMMANDS, "__init__", "common"}


def test_an_unknown_option_is_refused(call: Caller) -> None:
    ended = call("generate", "hello", "--controler", "history")
    assert ended.status == 2
    assert "--controler" in ended.err
    assert "Traceback" not in ended.err


@pytest.fixture(scope="module")
def run(folders: TinyFolders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a distillation, with the draft in it."""
    run = tmp_path_factory.mktemp("distill")
    assert distill(distill_options(folders, run)) == 0
    return run


def distill_options(folders: TinyFolders, run: Path) -> DistillOptions:
    return DistillOptions(str(folders.target), run, run / "draft", config=CONFIG)


class TestDistill:
    @staticmethod
    def shards(run: Path) -> dict[str, tuple[int, str]]:
        """When each shard was written, and a digest of it."""
        paths = sorted(run.glob("*.safetensors"))
        return {path.name: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths}

    def test_the_draft_its_card_and_its_record_are_written(self, run: Path) -> None:
        draft = run / "draft"
        assert {path.name for path in draft.iterdir()} == {"draft.safetensors", "README.md", "training.json"}
        assert (draft / "README.md").read_text(encoding="utf-8").startswith("# A feature draft for target\n")
        record = json.loads((draft / "training.json").read_text(encoding="utf-8"))
        assert record["target"] == "target"
        assert record["config"] == dataclasses.asdict(CONFIG)
        agreement = record["agreement"]["all"]
        assert agreement["positions"] > 0
        assert all(0 <= one <= four <= 1 for one, four in zip(agreement["top1"], agreement["top4"], strict=True))

    def test_the_draft_works_with_its_target(self, folders: TinyFolders, run: Path) -> None:
        pair = load_pair(str(folders.target), str(run / "draft" / "draft.safetensors"), "float32")
        assert isinstance(pair.draft, FeatureDraft)
        request = Request(encode_chat(pair.tokenizer, ["hello"]), 48)
        speculated = generate(pair.target, pair.draft, request, "fixed_tree:branch=4:depth=3")
        assert speculated.tokens == generate(pair.target, pair.draft, request).tokens
        assert 0 < speculated.accepted < speculated.drafted

    def test_a_second_run_uses_the_shards_that_are_there(self, folders: TinyFolders, run: Path) -> None:
        before, weights = self.shards(run), load_file(run / "draft" / "draft.safetensors")
        assert sorted(before) == [f"{what}-000{n}.safetensors" for what in ("states", "text") for n in range(2)]
        assert distill(distill_options(folders, run)) == 0
        assert self.shards(run) == before
        assert_close(load_file(run / "draft" / "draft.safetensors"), weights, rtol=0, atol=0)

    def test_a_lost_shard_is_made_again_as_it_was(self, folders: TinyFolders, run: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(run, tmp_path / "copy"))
        for name in ("text-0001.safetensors", "states-0001.safetensors"):
            (copy / name).unlink()
        assert distill(distill_options(folders, copy)) == 0
        digests = [{name: digest for name, (_, digest) in self.shards(each).items()} for each in (run, copy)]
        assert digests[0] == digests[1]

    def test_a_corrupt_shard_is_named(self, folders: TinyFolders, run: Path, call: Caller, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(run, tmp_path / "copy"))
        path = copy / "states-0000.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
        more = ["--config.generation.tokens", 2000, "--config.shard-tokens", 1000]
        ended = call("distill", "--target", folders.target, "--run", copy, "--output", copy / "draft", *more)
        assert ended.status == 2
        assert f"error: {path} is corrupt" in ended.err
        assert "Traceback" not in ended.err

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--device", "nowhere"], "Device 'nowhere' is not available here"),
            (["--target", "./nowhere"], "There is no folder nowhere"),
            (["--config.shard-tokens", "0"], "shard_tokens must be 1 or more; got 0."),
            (["--config.held-out", "1"], "held_out must be 2 or more; got 1."),
            (["--config.generation.slots", "0"], "generation.slots must be 1 or more; got 0."),
            (["--config.training.epochs", "0"], "training.epochs must be 1 or more; got 0."),
            (["--output", "pyproject.toml"], "Could not write pyproject.toml"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_a_wrong_setting_is_answered_by_name(
        self, folders: TinyFolders, call: Caller, tmp_path: Path, more: list[str], message: str
    ) -> None:
        standard = {"--target": folders.target, "--run": tmp_path / "run", "--output": tmp_path / "run" / "draft"}
        kept = [part for name, value in standard.items() if name not in more for part in (name, value)]
        ended = call("distill", *kept, *more)
        assert ended.status == 2
        assert message in ended.err
        assert "Traceback" not in ended.err

    def test_a_target_that_does_not_chat_is_refused(self, folders: TinyFolders, call: Caller, tmp_path: Path) -> None:
        silent = Path(shutil.copytree(folders.target, tmp_path / "silent"))
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = None
        (silent / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer.save_pretrained(silent)
        ended = call("distill", "--target", silent, "--run", tmp_path / "run", "--output", tmp_path / "run" / "draft")
        assert ended.status == 2
        assert "its tokenizer needs a chat template" in ended.err


class TestExactness:
    @staticmethod
    def arguments(folders: TinyFolders, output: Path, *more: object) -> list[object]:
        texts = ("hello world, hello", "Why is the sky blue?", "abc abc abc", "2 + 2 = 4")
        prompts = write_prompts(output.with_suffix(".jsonl"), texts)
        return ["--target", folders.target, "--prompts", prompts, "--output", output, "--layers", 1, *more]

    def test_a_target_that_is_exact_is_called_so(self, folders: TinyFolders, tmp_path: Path) -> None:
        arguments = self.arguments(folders, tmp_path / "out", "--seeds", 1, "--max-new-tokens", 32)
        ended = finish(start("exactness", *arguments, home=tmp_path / "home"))
        assert ended.status == 0, ended.err
        assert "Every output is exact" in ended.err
        record = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
        assert record["exact"] is True
        speculating = [name for name in controller_names() if name != "autoregressive"]
        compared = [(case["runner"], case["draft"], case["temperature"]) for case in record["cases"]]
        assert compared == [
            ("transformers", "", 0.0),
            *((name, draft, heat) for heat in (0.0, 1.0) for draft in ("lookup", "causal") for name in speculating),
        ]
        assert all(case["identical"] == case["prompts"] == 4 for case in record["cases"])
        assert all(case["exact"] for case in record["cases"])

    def test_a_comparison_of_nothing_is_not_called_exact(
        self, folders: TinyFolders, call: Caller, tmp_path: Path
    ) -> None:
        more = ["--seeds", 0, "--max-new-tokens", 1]  # the prompt's forward gives the only token
        ended = call("exactness", *self.arguments(folders, tmp_path / "out", *more))
        assert ended.status == 1
        assert "NOT every output is exact" in ended.err
        record = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
        assert record["exact"] is False
        assert {case["drafted"] for case in record["cases"]} == {0}

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--layers", "0"], "layers must be"),
            (["--layers", "2"], "layers must be"),
            (["--limit", "0"], "limit must be 1 or more; got 0."),
            (["--max-new-tokens", "0"], "max_new_tokens must be 1 or more; got 0."),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_a_wrong_setting_is_answered_by_name(
        self, folders: TinyFolders, call: Caller, tmp_path: Path, more: list[str], message: str
    ) -> None:
        assert_refused(call("exactness", *self.arguments(folders, tmp_path / "out", *more)), message)
        assert not (tmp_path / "out" / "results.json").exists()


class TestUpdatePages:
    def test_pages_are_brought_up_to_date(self, call: Caller, tmp_path: Path) -> None:
        results = make_results()
        settings = {"prompts": "builtin", "prompt_count": 2, "max_new_tokens": 64, "draft_kind": "feature"}
        results = dataclasses.replace(results, settings=results.settings | settings)
        write_results(results, tmp_path, plots=False)
        page = tmp_path / "page.md"
        page.write_text("<!-- results: results.json -->\n<!-- end of results -->\n", encoding="utf-8")
        ended = call("update_pages", "--pages", page)
        assert (ended.status, ended.out) == (0, "")
        assert "up to date" in ended.err
        assert "| tree |" in page.read_text(encoding="utf-8")

    def test_a_page_without_a_block_is_refused(self, call: Caller, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text("nothing", encoding="utf-8")
        assert_refused(call("update_pages", "--pages", page), f"{page} has no block")

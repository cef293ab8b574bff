"""`benchmark` leaves a whole record of what it measured, also when it is stopped, and never half a file."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from specgym.controllers.evaluation.checks.precision_agreement import Agreement
from specgym.controllers.evaluation.live.paired_runs import SUITES
from specgym.controllers.evaluation.results.report import load_results
from specgym.controllers.evaluation.results.tables import cut
from specgym.scripts.benchmark import BenchmarkOptions, benchmark
from specgym.scripts.options import PairOptions, SamplingOptions
from tests.support.commands import Caller, assert_refused, largest_file, write_prompts
from tests.support.tiny_pair import CONTEXT, TinyFolders, tiny_tokenizer

FILES = {"results.json", "results.csv", "results.md", "speedup.png", "time_shares.png"}
TEXTS = ("hello", "2 + 2 = ", "abc abc")
KEYS = {
    "tokens_per_second",
    "speedup",
    "speedup_ci95",
    "mean_accepted_tokens",
    "acceptance_rate",
    "identical_outputs",
    "prompts",
    "controller_share",
}


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", TEXTS)


@pytest.fixture(scope="module")
def output(folders: TinyFolders, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the full suite."""
    folder = tmp_path_factory.mktemp("results") / "full"
    pair = PairOptions(str(folders.target), str(folders.draft), "float32")
    options = BenchmarkOptions(pair, prompts=str(prompts), max_new_tokens=12, output=folder)
    assert benchmark(options) == 0
    return folder


def arguments(folders: TinyFolders, prompts: Path, output: Path, *more: object) -> list[object]:
    pair = ["--target", folders.target, "--draft", folders.draft, "--dtype", "float32"]
    return [*pair, "--prompts", prompts, "--output", output, "--max-new-tokens", 8, *more]


class TestRecord:
    def test_all_files_are_written(self, output: Path) -> None:
        assert {path.name for path in output.iterdir()} == FILES
        for name in ("speedup.png", "time_shares.png"):
            assert (output / name).read_bytes().startswith(b"\x89PNG")

    def test_the_record_says_what_was_asked_for_of_every_controller(self, output: Path) -> None:
        record = json.loads((output / "results.json").read_text(encoding="utf-8"))
        assert tuple(record["controllers"]) == SUITES["full"]
        for name, summary in record["controllers"].items():
            assert set(summary) >= KEYS
            assert summary["prompts"] == summary["identical_outputs"] == len(TEXTS)
            assert summary["tokens_per_second"] > 0
            low, high = summary["speedup_ci95"]
            assert low <= summary["speedup"] <= high
            if name in ("transformers", "autoregressive"):
                assert (summary["mean_accepted_tokens"], summary["acceptance_rate"]) == (1, None)
            elif name != "goodput":  # which does not speculate where it finds that it does not pay
                assert summary["mean_accepted_tokens"] > 1
                assert 0 < summary["acceptance_rate"] < 1
                assert 0 < summary["controller_share"] < 1

    def test_every_number_of_the_record_follows_from_its_rows(self, output: Path) -> None:
        results = load_results(output / "results.json")
        for name, summary in results.controllers.items():
            rows = [row for row in results.rows if row.controller == name]
            assert {row.prompt_id for row in rows} == {f"prompts/{number}" for number in range(len(TEXTS))}
            tokens = sum(row.tokens for row in rows)
            assert summary.tokens_per_second == pytest.approx(tokens / sum(row.seconds for row in rows))
            assert summary.mean_accepted_tokens == pytest.approx(tokens / sum(row.rounds for row in rows))

    def test_the_settings_are_kept_without_naming_folders_of_this_machine(self, output: Path) -> None:
        results = load_results(output / "results.json")
        assert (results.complete, results.failures, results.suite) == (True, [], "full")
        expected = {
            "target": "target",
            "draft": "draft",
            "draft_kind": "causal",
            "dtype": "float32",
            "temperature": 0.0,
            "prompts": "prompts.jsonl",
            "prompt_count": len(TEXTS),
            "max_new_tokens": 12,
            "repeats": 1,
        }
        assert expected.items() <= results.settings.items()
        for name in ("results.json", "results.md", "results.csv"):
            assert str(output.parent.parent) not in (output / name).read_text(encoding="utf-8")

    def test_tables_are_made_from_the_record(self, output: Path) -> None:
        with (output / "results.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert Counter(row["controller"] for row in rows) == dict.fromkeys(SUITES["full"], len(TEXTS))
        markdown = (output / "results.md").read_text(encoding="utf-8")
        assert all(f"| {name} |" in markdown for name in SUITES["full"])
        assert "INCOMPLETE" not in markdown


class TestChoice:
    @pytest.mark.parametrize("suite", ["phase1", "phase2"])
    def test_a_suite_holds_its_controllers(
        self, folders: TinyFolders, prompts: Path, call: Caller, tmp_path: Path, suite: str
    ) -> None:
        ended = call("benchmark", *arguments(folders, prompts, tmp_path / "out", "--suite", suite, "--limit", 1))
        assert ended.status == 0
        results = load_results(tmp_path / "out" / "results.json")
        assert tuple(results.controllers) == SUITES[suite]
        assert (results.suite, results.settings["prompt_count"], len(results.rows)) == (suite, 1, 3)
        assert all(name in ended.out for name in SUITES[suite]), "the table is shown"

    def test_named_controllers_replace_the_suites_and_the_baseline_is_always_there(
        self, folders: TinyFolders, prompts: Path, call: Caller, tmp_path: Path
    ) -> None:
        names = "fixed_tree:branch=3:depth=2,history,history"
        more = ["--controllers", names, "--repeats", 2, "--temperature", 1]
        assert call("benchmark", *arguments(folders, prompts, tmp_path / "out", *more)).status == 0
        results = load_results(tmp_path / "out" / "results.json")
        assert tuple(results.controllers) == ("autoregressive", "fixed_tree:branch=3:depth=2", "history")
        assert len(results.rows) == 3 * len(TEXTS) * 2
        assert [summary.identical_outputs for summary in results.controllers.values()] == [len(TEXTS)] * 3

    def test_every_speculating_controller_meets_the_rival_drafts_on_the_same_prompts(
        self, folders: TinyFolders, prompts: Path, call: Caller, tmp_path: Path
    ) -> None:
        more = ["--controllers", "transformers,fixed_tree", "--drafts", f"lookup=lookup,other={folders.feature_draft}"]
        assert call("benchmark", *arguments(folders, prompts, tmp_path / "out", *more)).status == 0
        results = load_results(tmp_path / "out" / "results.json")
        names = ("autoregressive", "transformers", "fixed_tree", "fixed_tree@lookup", "fixed_tree@other")
        assert tuple(results.controllers) == names
        assert {row.prompt_id for row in results.rows if row.controller == names[-1]} == {
            row.prompt_id for row in results.rows if row.controller == names[0]
        }
        assert len({results.controllers[name].acceptance_rate for name in names[2:]}) == 3, "three different drafts"
        assert results.settings["rivals"] == "lookup=lookup,other=draft.safetensors"

    @pytest.mark.parametrize("temperature", [0, 1])
    def test_another_precision_is_compared_with_its_own_plain_decoding(
        self, folders: TinyFolders, prompts: Path, call: Caller, tmp_path: Path, temperature: int
    ) -> None:
        more = ["--controllers", "transformers,history", "--also-dtype", "bfloat16", "--temperature", temperature]
        ended = call("benchmark", *arguments(folders, prompts, tmp_path / "out", *more))
        assert ended.status == 0, ended.err
        results = load_results(tmp_path / "out" / "results.json")
        names = ("autoregressive", "transformers", "history", "autoregressive@bfloat16", "history@bfloat16")
        assert tuple(results.controllers) == names
        for name in ("history", *names[3:]):
            assert results.controllers[name].identical_outputs == len(TEXTS)
        agreement = Agreement(**results.settings["agreement"])
        assert agreement.positions > 10
        assert 0.8 < agreement.same <= 1
        assert abs(agreement.nats) < 0.1
        said = f"In bfloat16 the target has the same likeliest token at {cut(100 * agreement.same, 1)} % of"
        assert said in (tmp_path / "out" / "results.md").read_text(encoding="utf-8")


class TestRefusals:
    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--controllers", "histroy"], "Unknown controller 'histroy'. Did you mean history or heuristic?"),
            (["--limit", "0"], "Expected a limit of at least 1 prompt, got 0"),
            (["--categories", "kind 2"], "Unknown category of"),
            (["--repeats", "0"], "repeats must be 1 or more; got 0."),
            (["--max-new-tokens", "0"], "max_new_tokens must be 1 or more; got 0."),
            (["--prompts", "bultin"], "Unknown prompt source 'bultin'. Did you mean builtin?"),
            (["--drafts", "lookup"], "Expected drafts as NAME=DRAFT, each with a name of its own; got 'lookup'."),
            (["--drafts", "a=lookup,a=lookup"], "each with a name of its own; got 'a=lookup'."),
            (["--also-dtype", "float32"], "also_dtype must be another precision than dtype; got float32 for both."),
            (["--also-dtype", "float8"], "also_dtype must be one of bfloat16, float16, float32, int8; got 'float8'."),
            (["--drafts", "a=nowhere.safetensors"], "nowhere.safetensors; there is no such file"),
            (["--draft", "nowhere.safetensors"], "nowhere.safetensors; there is no such file"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_a_wrong_setting_is_answered_by_name_and_nothing_is_written(
        self, folders: TinyFolders, call: Caller, tmp_path: Path, more: list[str], message: str
    ) -> None:
        prompts = write_prompts(tmp_path / "prompts.jsonl", TEXTS)
        assert_refused(call("benchmark", *arguments(folders, prompts, tmp_path / "out", *more)), message)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [prompts]

    def test_a_bad_line_of_a_prompt_file_is_named(self, folders: TinyFolders, call: Caller, tmp_path: Path) -> None:
        bad = write_prompts(tmp_path / "bad.jsonl", TEXTS)
        bad.write_text(bad.read_text(encoding="utf-8") + "\n{oops}\n", encoding="utf-8")
        ended = call("benchmark", *arguments(folders, bad, tmp_path / "out"))
        assert_refused(ended, f"{bad}:{len(TEXTS) + 2}: expected one JSON object")

    def test_an_output_that_is_a_file_is_refused_before_the_models_are_loaded(
        self, folders: TinyFolders, prompts: Path, call: Caller, tmp_path: Path
    ) -> None:
        (tmp_path / "out").write_text("mine", encoding="utf-8")
        ended = call("benchmark", *arguments(folders, prompts, tmp_path / "out", "--target", "./nowhere"))
        assert_refused(ended, f"Could not write {tmp_path / 'out'}")
        assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


class TestFullDisk:
    def test_no_half_written_file_is_left(
        self, folders: TinyFolders, prompts: Path, call: Caller, tmp_path: Path
    ) -> None:
        with largest_file(1000):
            ended = call("benchmark", *arguments(folders, prompts, tmp_path / "out", "--suite", "phase1"))
        assert ended.status == 2
        assert f"error: Could not write {tmp_path / 'out' / 'rows.jsonl'}: File too large" in ended.err
        assert list((tmp_path / "out").iterdir()) == []

    def test_earlier_results_stay_as_they_were(
        self, folders: TinyFolders, prompts: Path, call: Caller, output: Path, tmp_path: Path
    ) -> None:
        copy = Path(shutil.copytree(output, tmp_path / "copy"))
        with largest_file(1000):
            ended = call("benchmark", *arguments(folders, prompts, copy, "--suite", "phase1"))
        assert ended.status == 2
        assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
            path.name: path.read_bytes() for path in output.iterdir()
        }


class TestFailures:
    def test_prompts_that_fail_are_told_and_the_others_measured(
        self, folders: TinyFolders, call: Caller, tmp_path: Path
    ) -> None:
        call.monkeypatch.setenv("COLUMNS", "200")  # a narrow table may break any word
        target = self.target_that_cannot_read_tildes(folders, tmp_path)
        texts = ["~", "hello", "a" * CONTEXT, "abc abc"]
        prompts = write_prompts(tmp_path / "prompts.jsonl", texts)
        more = ["--target", target, "--draft", "lookup", "--suite", "full"]
        ended = call("benchmark", *arguments(folders, prompts, tmp_path / "out", *more))
        assert "Traceback" not in ended.err
        results = load_results(tmp_path / "out" / "results.json")
        names = SUITES["full"]
        assert Counter(row.prompt_id for row in results.rows) == dict.fromkeys(("prompts/1", "prompts/3"), len(names))
        messages = {failure.prompt_id: failure.error for failure in results.failures}
        assert len(results.failures) == 2 * len(names)
        assert "NaN" in messages["prompts/0"]
        assert f"at most {CONTEXT}" in messages["prompts/2"]
        assert [summary.failures for summary in results.controllers.values()] == [2] * len(names)
        assert "failed" in ended.out

    @staticmethod
    def target_that_cannot_read_tildes(folders: TinyFolders, folder: Path) -> Path:
        copy = Path(shutil.copytree(folders.target, folder / "nan"))
        model = AutoModelForCausalLM.from_pretrained(copy)
        with torch.no_grad():
            model.model.embed_tokens.weight[tiny_tokenizer().encode("~")[0]] = torch.nan
        model.save_pretrained(copy)
        return copy


def test_sampling_options_reach_the_record(
    folders: TinyFolders, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = PairOptions(str(folders.target), "lookup", "float32")
    sampling = SamplingOptions(temperature=0.8, top_k=20, top_p=0.9, seed=11)
    options = BenchmarkOptions(
        pair, sampling, str(prompts), limit=1, max_new_tokens=8, suite="phase1", output=tmp_path / "out"
    )
    assert benchmark(options) == 0
    recorded = load_results(tmp_path / "out" / "results.json").settings
    assert {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": 11}.items() <= recorded.items()
    assert recorded["draft_kind"] == "lookup"

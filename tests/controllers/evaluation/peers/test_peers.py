"""Peers run in processes of their own, and every run ends with tokens or with a reason."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
import sys
import threading
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from specgym.controllers.evaluation.live.paired_runs import Benchmark, Measurements
from specgym.controllers.evaluation.live.runners import make_runner
from specgym.controllers.evaluation.peers.catalogue import LIBRARIES, PEERS, Setup, Task
from specgym.controllers.evaluation.peers.client import (
    PeerError,
    PeerRunner,
    Worker,
    closing,
    cut_at_end,
    without_folders,
)
from specgym.controllers.evaluation.peers.comparison import (
    check_peers,
    find_assistant,
    make_setup,
    open_peers,
    ours,
    parse_pythons,
)
from specgym.controllers.evaluation.peers.libraries import transformers_peers
from specgym.controllers.evaluation.peers.libraries.gguf_file import write_gguf
from specgym.controllers.evaluation.peers.worker import WorkerServer
from specgym.controllers.evaluation.results.report import table
from specgym.controllers.evaluation.results.schema import PeerFacts
from specgym.controllers.evaluation.results.statistics import inverse
from specgym.controllers.registry import BASELINE
from specgym.env.common.errors import LimitError, PairError, ParameterError, UnknownNameError
from specgym.env.decoding.pair import ModelPair, encode_chat
from specgym.env.prompts import Prompt
from specgym.env.tree.rounds import FinishReason, Request
from specgym.env.tree.sampling import SamplingSettings
from tests.support.rows import make_results
from tests.support.tiny_pair import CONTEXT, TinyFolders, save_model, tiny_chat_model

NAMES = ("transformers", "transformers-assisted", "transformers-lookup")
PROMPTS = (Prompt("p/1", "sums", ("2 + 2 = ",)), Prompt("p/2", "talk", ("hello", "abc abc")))
TOKENS = 16
LONG = Request(tuple(range(5, 15)), CONTEXT)


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python in which nothing is installed."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return str(folder / "bin" / "python")


@pytest.fixture(scope="module")
def setup(pair: ModelPair, folders: TinyFolders) -> Setup:
    sampling = SamplingSettings()
    made = make_setup(pair, PROMPTS, max_new_tokens=TOKENS, sampling=sampling, assistant=folders.draft)
    return dataclasses.replace(made, threads=1)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """A worker with transformers, for all tests of this module."""
    with closing({"transformers": Worker(LIBRARIES["transformers"], sys.executable)}) as workers:
        yield workers["transformers"]


@pytest.fixture(scope="module")
def runners(
    worker: Worker, setup: Setup, pair: ModelPair, tmp_path_factory: pytest.TempPathFactory
) -> list[PeerRunner]:
    folder = tmp_path_factory.mktemp("files")
    opened = open_peers(NAMES, {"transformers": worker}, setup, pair=pair, prompt=PROMPTS[0], folder=folder)
    assert {name: facts.reason for name, facts in opened.facts.items()} == dict.fromkeys(NAMES)
    return opened.runners


class TestTransformersPeers:
    def test_all_give_the_targets_own_text(self, runners: list[PeerRunner], pair: ModelPair) -> None:
        measured = Measurements()
        both = [make_runner(BASELINE, pair.decoder()), *runners]
        Benchmark(pair, both, PROMPTS, max_new_tokens=TOKENS, sampling=SamplingSettings()).measure(measured)
        assert measured.failures == []
        assert len(measured.rows) == len(both) * len(PROMPTS)
        texts = {(row.controller, row.prompt_id): row for row in measured.rows}
        for name in NAMES:
            assert all(texts[name, prompt.identifier].identical for prompt in PROMPTS)
            for prompt in PROMPTS:
                row, plain = texts[name, prompt.identifier], texts[BASELINE, prompt.identifier]
                assert (row.tokens, row.prompt_tokens) == (plain.tokens, plain.prompt_tokens)
        for name in NAMES[1:]:
            rows = [texts[name, prompt.identifier] for prompt in PROMPTS]
            drafted, accepted = sum(row.drafted for row in rows), sum(row.accepted for row in rows)
            assert 0 < accepted < drafted, "the test would be vacuous"
            assert sum(row.rounds + row.accepted for row in rows) == sum(row.tokens for row in rows)

    def test_a_text_ends_where_it_must(self, runners: list[PeerRunner]) -> None:
        prompt = tuple(range(5, 5 + 60)) * 7
        for runner in runners:
            short = runner(Request(prompt[: CONTEXT - 3], TOKENS))
            assert len(short.tokens) <= 3
            assert short.finished in (FinishReason.CONTEXT_LIMIT, FinishReason.END_OF_SEQUENCE)
            with pytest.raises(LimitError, match="The prompt has"):
                runner(Request(prompt[:CONTEXT], TOKENS))

    @pytest.mark.parametrize(
        "settings", [{"repetition_penalty": 1.5}, {"num_beams": 2}, {"suppress_tokens": [40, 41, 42]}], ids=str
    )
    def test_generation_settings_in_the_models_folder_are_left_out(
        self, setup: Setup, folders: TinyFolders, tmp_path: Path, settings: dict[str, object]
    ) -> None:
        shutil.copytree(folders.target, tmp_path / "own")
        (tmp_path / "own" / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
        task = Task(list(range(9, 24)) * 2, TOKENS, 0)
        own, bare = (
            transformers_peers.open_peer("transformers", dataclasses.replace(setup, target=str(folder)))(task)
            for folder in (tmp_path / "own", folders.target)
        )
        assert own.tokens == bare.tokens

    def test_sampling_follows_the_seed(self, worker: Worker, setup: Setup, pair: ModelPair) -> None:
        hot = dataclasses.replace(setup, temperature=1.0)
        prompt = encode_chat(pair.tokenizer, ["hello"])
        runner = PeerRunner(PEERS["transformers"], worker, hot, CONTEXT, Task(list(prompt), 2, 0))
        runner.open()
        texts = [runner(Request(prompt, TOKENS, SamplingSettings(1.0, seed=seed))).tokens for seed in (1, 1, 2)]
        assert texts[0] == texts[1] != texts[2]

    def test_a_peer_that_dies_is_reported_and_the_others_go_on(
        self, worker: Worker, setup: Setup, pair: ModelPair
    ) -> None:
        prompt = encode_chat(pair.tokenizer, ["hello"])
        warm_up = Task(list(prompt), 2, 0)
        setup = dataclasses.replace(setup, end_tokens=[])
        victim, slow, other = (PeerRunner(PEERS[name], worker, setup, CONTEXT, warm_up) for name in NAMES)
        for runner in (victim, slow, other):
            runner.open()
        killer = threading.Timer(0.1, worker.kill)
        killer.start()
        with pytest.raises(PeerError, match="its process was ended by SIGKILL"):
            self.run_on_and_on(victim)
        killer.join()
        started = time.monotonic()
        with pytest.raises(PeerError, match="its process was ended by SIGKILL"):
            victim(LONG)
        assert time.monotonic() - started < 0.1, "it ran again"
        assert len(other(Request(prompt, TOKENS)).tokens) == TOKENS, "the others go on in a new process"
        worker.patience = 0.001
        with pytest.raises(PeerError, match=r"no answer within 0\.001 s"):
            other(LONG)

    @staticmethod
    def run_on_and_on(runner: PeerRunner) -> None:
        for _ in range(100):
            runner(LONG)


class TestWorker:
    def test_an_absent_library_is_reported_with_the_install_command(self, bare_python: str) -> None:
        for name, package in (("llama.cpp", "llama-cpp-python"), ("economize", "economize")):
            with closing({name: Worker(LIBRARIES[name], bare_python)}) as workers:
                with pytest.raises(PeerError, match=f"is not installed. Run `pip install {package}`."):
                    workers[name].call("version")
                assert workers[name].alive, "a request that fails must not end it"
                with pytest.raises(PeerError, match="Expected command to be version, open or generate; got 'hello'"):
                    workers[name].call("hello")

    def test_it_ends_with_the_block_also_when_interrupted(self, bare_python: str) -> None:
        worker = Worker(LIBRARIES["llama.cpp"], bare_python)

        def work() -> None:
            with closing({"llama.cpp": worker}):
                with pytest.raises(PeerError):
                    worker.call("version")
                assert worker.alive
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(10)

        with pytest.raises(KeyboardInterrupt):
            work()
        assert not worker.alive

    def test_the_last_line_of_a_process_that_dies_is_the_reason(self, tmp_path: Path) -> None:
        program = tmp_path / "python"
        program.write_text("#!/bin/sh\necho 'no luck in /some/where/file.py' >&2\nexit 3\n", encoding="utf-8")
        program.chmod(0o755)
        worker = Worker(LIBRARIES["flashspec"], str(program))
        with pytest.raises(PeerError, match=r"ended with status 3; its last words: no luck in file\.py$"):
            worker.call("version")

    def test_a_python_that_cannot_run_is_reported(self, tmp_path: Path) -> None:
        (tmp_path / "python").write_text("", encoding="utf-8")
        with pytest.raises(PeerError, match="its Python did not start: Permission denied"):
            Worker(LIBRARIES["flashspec"], str(tmp_path / "python")).call("version")

    def test_every_request_gets_one_line(self) -> None:
        replies_written = io.StringIO()
        requests = [{"command": "generate", "peer": "nobody", "task": {}}, {"command": "version"}]
        lines = io.StringIO("".join(json.dumps(request) + "\n" for request in requests) + "oops\n")
        WorkerServer(LIBRARIES["transformers"]).serve(lines, replies_written)
        replies = [json.loads(line) for line in replies_written.getvalue().splitlines()]
        assert [set(reply) for reply in replies] == [{"error"}, {"answer"}, {"error"}]
        assert replies[0]["error"] == "KeyError: 'nobody'"

    def test_reasons_name_no_folder(self) -> None:
        text = "no file /home/ann/models/x.gguf, see https://example.org/a/b or 3/4 of '~/a b'"
        assert without_folders(text) == "no file x.gguf, see https://example.org/a/b or 3/4 of 'a b'"


def test_tokens_past_the_end_are_not_counted() -> None:
    assert cut_at_end([5, 6, 2, 7], [2], 10) == [5, 6, 2]
    assert cut_at_end([5, 6, 2, 7], [9], 2) == [5, 6]


class TestChoice:
    def test_every_peer_comes_with_its_baseline(self) -> None:
        assert check_peers(None) == list(PEERS)
        assert check_peers("llama.cpp-lookup,flashspec-lookup") == [
            "transformers",
            "flashspec-lookup",
            "llama.cpp",
            "llama.cpp-lookup",
        ]
        assert all(PEERS[peer.library.baseline].library.baseline == peer.library.baseline for peer in PEERS.values())

    def test_an_unknown_peer_gets_the_closest_names(self) -> None:
        with pytest.raises(UnknownNameError, match=r"Unknown peer 'lama\.cpp'\. Did you mean llama\.cpp"):
            check_peers("transformers,lama.cpp")

    def test_a_library_may_have_another_python(self) -> None:
        chosen = parse_pythons(f"economize={sys.executable}", sys.executable, "/usr/bin/env")
        assert chosen == {
            "transformers": "/usr/bin/env",
            "flashspec": sys.executable,
            "economize": sys.executable,
            "llama.cpp": sys.executable,
        }

    @pytest.mark.parametrize(
        ("pythons", "error", "message"),
        [
            ("flashspec", ParameterError, "LIBRARY=PATH, each with a name of its own; got 'flashspec'"),
            ("flaspec=x", UnknownNameError, "Unknown library 'flaspec'. Did you mean flashspec"),
            ("flashspec=nowhere/python", ParameterError, "There is no interpreter nowhere/python for flashspec"),
        ],
    )
    def test_a_wrong_python_is_refused(self, pythons: str, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            parse_pythons(pythons, None, sys.executable)

    def test_ours_are_plain_decoding_the_best_rule_and_what_is_named(self) -> None:
        assert ours(None) == ["autoregressive", "goodput"]
        assert ours("history,goodput") == ["autoregressive", "goodput", "history"]

    def test_the_assistant_must_fit_the_target(self, pair: ModelPair, folders: TinyFolders) -> None:
        assert find_assistant(str(folders.draft), "tiny", pair.tokenizer) == folders.draft
        assert find_assistant(None, "tiny", pair.tokenizer) is None
        with pytest.raises(PairError):
            find_assistant(str(folders.stranger), "tiny", pair.tokenizer)

    def test_a_peer_that_needs_an_assistant_is_refused_without_one(self, worker: Worker, setup: Setup) -> None:
        alone = dataclasses.replace(setup, assistant=None)
        runner = PeerRunner(PEERS["transformers-assisted"], worker, alone, CONTEXT, Task([5], 1, 0))
        with pytest.raises(PeerError, match="give one with --assistant"):
            runner.open()


class TestGguf:
    @pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
    def test_the_weights_are_the_same(self, folders: TinyFolders, tmp_path: Path, dtype: str) -> None:
        write_gguf(folders.target, dtype, tmp_path / "model.gguf")
        theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
        ours_ = load_file(folders.target / "model.safetensors")
        assert len(theirs) == len(ours_)
        expected = ours_["model.layers.1.mlp.down_proj.weight"].to(getattr(torch, dtype)).float().numpy()
        written = theirs["blk.1.ffn_down.weight"]
        assert np.array_equal(gguf.quants.dequantize(written.data, written.tensor_type), expected)
        # llama.cpp rotates neighbouring rows, transformers the halves of a head: row 1 is the first of the second half.
        query = theirs["blk.0.attn_q.weight"]
        rows = gguf.quants.dequantize(query.data, query.tensor_type)
        original = ours_["model.layers.0.self_attn.q_proj.weight"].to(getattr(torch, dtype)).float().numpy()
        assert np.array_equal(rows[:4], original[[0, 4, 1, 5]])

    def test_a_model_of_another_kind_is_refused(self, tmp_path: Path) -> None:
        model = tiny_chat_model()
        model.config.attention_bias = True
        save_model(tmp_path / "biased", model)
        with pytest.raises(PeerError, match="only a plain Llama"):
            write_gguf(tmp_path / "biased", "float32", tmp_path / "model.gguf")
        assert not (tmp_path / "model.gguf").exists()


class TestReport:
    def test_ratios_are_ours_over_theirs_and_reasons_stand_in_the_table(self) -> None:
        facts = {
            "tree": PeerFacts("trees", "1.0", "a tree", "tree", None),
            "absent": PeerFacts("nowhere", None, "-", "absent", "nowhere is not installed."),
        }
        peers = {name: dataclasses.asdict(each) for name, each in facts.items()}
        plain = make_results()
        empty = dataclasses.replace(
            plain.controllers["tree"],
            tokens_per_second=None,
            speedup=None,
            speedup_ci95=None,
            mean_accepted_tokens=None,
            identical_outputs=None,
            prompts=0,
            by_category={},
        )
        results = dataclasses.replace(
            plain,
            kind="compare",
            settings=plain.settings | {"peers": peers},
            controllers=plain.controllers | {"absent": empty},
        )
        over = inverse(results.controllers["tree"])
        before = plain.controllers["tree"]
        assert before.speedup is not None
        assert over.speedup == pytest.approx(1 / before.speedup)
        assert over.speedup_ci95 is not None
        assert over.speedup_ci95[0] <= over.speedup <= over.speedup_ci95[1]
        summary = table(results)
        rows = [dict(zip(summary.headers, row, strict=True)) for row in summary.rows]
        assert str(rows[1]["ours/peer"]).startswith("0.66 [")  # 4 s + 6 s against 6 s + 9 s
        assert rows[1]["did not run because"] is None
        assert (rows[2]["peer"], rows[2]["tokens/s"], rows[2]["ours/peer"]) == ("absent", "-", "-")
        assert rows[2]["did not run because"] == "nowhere is not installed."

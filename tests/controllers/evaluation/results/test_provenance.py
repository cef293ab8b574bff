"""Facts about a run are right, and publish nothing about the machine's folders."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from specgym.controllers.evaluation.results import provenance


@pytest.mark.parametrize(
    ("text", "described"),
    [
        ("", ""),
        ("processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", "AMD EPYC, AVX-512 BF16"),
        ("model name\t: AMD EPYC\nflags\t\t: fpu avx avx2\n\nmodel name\t: AMD EPYC\n", "AMD EPYC, AVX2"),
        ("model name\t: Atom\nflags\t\t: fpu sse\n", "Atom"),
    ],
)
def test_processors_of_one_name_differ_by_their_vector_instructions(text: str, described: str) -> None:
    assert provenance.described_cpu(text) == described


def test_the_machine_and_the_libraries_are_described() -> None:
    machine = provenance.machine("cpu")
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.threads >= 1
    assert machine.memory_gib > 0
    versions = provenance.library_versions()
    assert versions["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert {"torch", "numpy"} <= set(versions)


@pytest.mark.parametrize(
    ("argument", "published"),
    [
        ("--tokens=12", "--tokens=12"),
        ("history,confidence", "history,confidence"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("/home/ann/secret/prompts.jsonl", "prompts.jsonl"),
        ("--out=/home/ann/runs", "--out=runs"),
        ("/a/b.json,/c/d.json", "b.json,d.json"),
        ("~/models/small", "small"),
        ("../elsewhere/x", "x"),
    ],
)
def test_published_arguments_name_no_folder_of_this_machine(argument: str, published: str) -> None:
    assert provenance.shareable(argument) == published


def test_the_command_can_be_typed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [str(tmp_path / "scripts" / "benchmark.py"), "--out", str(tmp_path / "runs" / "my run"), "--tokens", "8"]
    assert provenance.command_line(argv, "scripts.benchmark") == (
        "python -m scripts.benchmark --out 'runs/my run' --tokens 8"
    )
    assert provenance.command_line(argv[:1]) == "python scripts/benchmark.py"
    assert provenance.command_line(["/usr/bin/specgym", "run"]) == "specgym run"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_revision_is_marked_when_tracked_files_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set when a git hook runs the tests
        monkeypatch.delenv(name, raising=False)
    repository = tmp_path / "checkout"
    (repository / "inside").mkdir(parents=True)
    (repository / "code.py").write_text("1\n")

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=repository, check=True, capture_output=True)

    git("init")
    assert provenance.git_revision(repository) is None
    git("add", "code.py")
    git("commit", "--no-verify", "-m", "first")
    clean = provenance.git_revision(repository)
    assert clean is not None
    assert len(clean) == 40
    (repository / "untracked.txt").write_text("x")
    assert provenance.git_revision(repository) == clean
    (repository / "code.py").write_text("2\n")
    assert provenance.git_revision(repository) == f"{clean}-dirty"
    assert provenance.git_revision(repository / "inside") is None

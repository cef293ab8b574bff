"""Every argument of a command is text, its errors are short, and no stream that fails costs a result."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from specgym.controllers.evaluation.results.report import load_results
from specgym.env.common.errors import ParameterError
from specgym.scripts.common import console, main
from tests.support.commands import Caller, assert_refused, write_prompts
from tests.support.tiny_pair import TinyFolders

UNREADABLE = "caf\udce9"  # as Python gives the byte 0xe9


class TestArguments:
    @pytest.mark.parametrize(
        "line",
        [
            ("generate", UNREADABLE),
            ("generate", "hello", "--controller", UNREADABLE),
            ("generate", "hello", f"--target=/tmp/{UNREADABLE}"),
            ("benchmark", "--output", UNREADABLE),
            ("benchmark", "--prompts", f"{UNREADABLE}.jsonl"),
            ("record", "--temperatures", "0", UNREADABLE),
            ("train", f"--{UNREADABLE}"),
        ],
        ids=lambda line: " ".join(line).encode("ascii", "replace").decode(),
    )
    def test_bytes_that_are_not_utf_8_are_refused_wherever_they_stand(self, call: Caller, line: list[str]) -> None:
        assert_refused(call(*line), r"Expected every argument in UTF-8; got b'")

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            (("--threads", 10**10), "threads must be at most 1024; got 10000000000."),
            (("--threads", 10**6), "threads must be at most 1024; got 1000000."),
            (("--threads", 0), "threads must be 1 or more; got 0."),
            (("--device", "meta"), "models run on cpu or cuda, not on meta"),
            (("--device", "mps"), "Device 'mps' is not available here"),
        ],
    )
    def test_a_machine_that_nobody_has_is_refused(
        self, folders: TinyFolders, call: Caller, option: tuple[str, object], message: str
    ) -> None:
        ended = call("generate", "hello", "--target", folders.target, "--draft", "lookup", *option)
        assert_refused(ended, message)


class TestErrors:
    @pytest.mark.parametrize("message", ["line\n" * 23, "name, " * 200_000, "\x1b[2J\x07" * 1000])
    def test_a_long_message_is_cut_and_says_how_much_is_left_out(
        self, capsys: pytest.CaptureFixture[str], message: str
    ) -> None:
        def fail(options: Path) -> int:
            raise ParameterError(message)

        with pytest.raises(SystemExit):
            main(fail, ["."])
        shown = capsys.readouterr().err
        assert len(shown) < 3000
        assert len(shown.splitlines()) <= 3
        assert "characters left out)" in shown
        assert all(letter.isprintable() or letter == "\n" for letter in shown)

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device", "here.txt"), MemoryError()])
    def test_an_error_of_the_system_is_one_sentence(
        self, capsys: pytest.CaptureFixture[str], error: BaseException
    ) -> None:
        def fail(options: Path) -> int:
            raise error

        with pytest.raises(SystemExit) as ended:
            main(fail, ["."])
        shown = capsys.readouterr().err
        assert ended.value.code == 2
        assert shown.startswith("error: ")
        assert "run the command again" in shown
        assert len(shown.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
class TestFullOutput:
    @pytest.fixture
    @staticmethod
    def fill(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
        """Makes a stream one that takes nothing."""
        monkeypatch.setattr(console, "quiet", False)  # restored at the end
        with contextlib.ExitStack() as files:

            def fill(name: str) -> None:
                file = files.enter_context(Path("/dev/full").open("w", encoding="utf-8"))
                monkeypatch.setattr(sys, name, file)

            yield fill
            monkeypatch.undo()

    @pytest.mark.parametrize("line", [("--help",), ("train", "--help")], ids=" ".join)
    def test_help_says_that_it_could_not_be_written(
        self, call: Caller, fill: Callable[[str], None], line: tuple[str, ...]
    ) -> None:
        fill("stdout")
        ended = call(*line)
        assert ended.status == 2
        assert ended.err == "error: Could not write to the standard output: No space left on device.\n"

    def test_an_answer_that_cannot_be_printed_is_an_error(
        self, folders: TinyFolders, call: Caller, fill: Callable[[str], None]
    ) -> None:
        fill("stdout")
        ended = call("generate", "hello", "--target", folders.target, "--draft", "lookup", "--max-new-tokens", 4)
        assert ended.status == 2
        assert ended.err.endswith("error: Could not write to the standard output: No space left on device.\n")

    def test_results_are_in_their_files_whatever_becomes_of_the_streams(
        self, folders: TinyFolders, call: Caller, fill: Callable[[str], None], tmp_path: Path
    ) -> None:
        prompts = write_prompts(tmp_path / "prompts.jsonl", ["hello"])
        few = ["--prompts", prompts, "--controllers", "fixed_tree", "--max-new-tokens", 4, "--dtype", "float32"]
        for name, status in (("stderr", 0), ("stdout", 2)):
            fill(name)
            output = tmp_path / name
            ended = call("benchmark", "--target", folders.target, "--draft", "lookup", "--output", output, *few)
            assert ended.status == status
            assert load_results(output / "results.json").complete

    def test_a_stream_that_the_shell_closed_is_no_error(self, call: Caller) -> None:
        with call.monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", None)
            assert call("--help").status == 0

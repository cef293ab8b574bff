"""A signal ends a command in order: it prints one line at most, and the status says which signal came."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from specgym.env.common.processes import interrupts_held
from specgym.scripts.signals import Interrupts, exit_status
from tests.support.commands import ROOT

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STARTS = {
    "python -m scripts.NAME": ["-m", "scripts.generate"],
    "python -m specgym.scripts.NAME": ["-m", "specgym.scripts.generate"],
    "specgym NAME": [
        "-c",
        "import sys; sys.argv[:] = ['bin/specgym', 'generate', *sys.argv[1:]]; "
        "from specgym.scripts.cli import run_command; run_command()",
    ],
}
SEND = "import os, signal\nos.kill(os.getpid(), signal.{name})\nraise SystemExit(9)\n"


def start_with(module: str, content: str, folder: Path, start: Sequence[str], **options: object) -> tuple[int, str]:
    """Starts a command for which `module` is a file of this content. Returns the status and what it printed."""
    (folder / f"{module}.py").write_text(content, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, *start, "hello"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        restore_signals=True,
        preexec_fn=options.get("first"),
    )
    return done.returncode, done.stdout + done.stderr


def listen() -> None:
    """Undoes what a shell does to what it starts in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class TestImports:
    @pytest.mark.parametrize("module", ["gymnasium", "tyro"])
    @pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
    def test_ctrl_c_while_a_command_is_imported_prints_no_traceback(
        self, tmp_path: Path, start: list[str], module: str
    ) -> None:
        status, shown = start_with(module, SEND.format(name="SIGINT"), tmp_path, start, first=listen)
        assert (status, shown) == (130, "")

    @pytest.mark.parametrize("number", SIGNALS)
    def test_a_signal_while_a_command_imports_its_libraries_prints_one_line(
        self, tmp_path: Path, number: signal.Signals
    ) -> None:
        content = SEND.format(name=number.name)
        status, shown = start_with("torch", content, tmp_path, STARTS["specgym NAME"], first=listen)
        assert (status, shown) == (exit_status(number), "Interrupted.\n")

    def test_a_signal_that_was_ignored_stays_ignored(self, tmp_path: Path) -> None:
        """As under `nohup`, or in the background of a script."""

        def ignore() -> None:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)

        content = "".join(f"import os, signal\nos.kill(os.getpid(), signal.{number.name})\n" for number in SIGNALS)
        content += "raise SystemExit(9)\n"
        assert start_with("torch", content, tmp_path, STARTS["python -m scripts.NAME"], first=ignore) == (9, "")

    def test_a_program_that_only_imports_the_package_keeps_its_own_handler(self) -> None:
        code = "import signal, specgym; assert signal.getsignal(2) is signal.default_int_handler"
        assert subprocess.run([sys.executable, "-c", code], preexec_fn=listen, check=False).returncode == 0


class TestWork:
    @pytest.fixture(autouse=True)
    @staticmethod
    def _restored() -> object:
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        for number, handler in handlers.items():
            signal.signal(number, handler)

    @pytest.mark.parametrize("number", SIGNALS)
    def test_every_signal_interrupts_and_the_status_names_the_first(self, number: signal.Signals) -> None:
        interrupts = Interrupts(self.nothing)
        for sent in (number, signal.SIGINT):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(sent)
        assert interrupts.status == 128 + number

    @pytest.mark.parametrize("pair", [(signal.SIGTERM, signal.SIGHUP), (signal.SIGTERM, signal.SIGTERM)])
    def test_signals_that_a_scheduler_sends_together_count_once(
        self, pair: tuple[signal.Signals, signal.Signals]
    ) -> None:
        """A second Ctrl-C would break off work that has to be whole; a second SIGTERM must not."""
        interrupts, finished = Interrupts(self.nothing), []

        def work(interrupted: Callable[[], bool]) -> None:
            for number in pair:
                signal.raise_signal(number)
            finished.append(interrupted())

        with pytest.raises(KeyboardInterrupt), interrupts_held() as interrupted:
            work(interrupted)
        assert finished == [True]
        assert interrupts.status == 128 + pair[0]

    @staticmethod
    def nothing() -> None:
        """Nothing has to be done before the process ends."""
